"""One scheme of tacit on Flower: a ServerApp for the coordinator, a ClientApp for each owner."""
