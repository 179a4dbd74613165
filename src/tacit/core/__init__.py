"""What everything rests on: errors, coins, wire, cost, claims."""
