"""Computing on values that two parties share and neither sees.

Two servers hold additive shares of every value. Sums cost nothing; products, comparisons and the rest cost messages between
the two, and correlations: random values with a relation, made without any input and used once.

===================  =============================================================================
`session`            two parties who have agreed on ring, precision and correlations
`arithmetic`         products, squares, fixed operands, opening, local truncation
`boolean`            circuits on bit-sliced shares; bits of shared values, selection, ReLU, exact truncation
`garbling`           circuits that party 0 garbles and party 1 evaluates, at once or prepared
`correlations`       what operations use up, and plans of it
`store`              where correlations are kept, in memory or made in windows; `file_store` on disk
`dealer`             correlations from a third party who sees no data
`oblivious`          correlations from oblivious transfer (`transfers`), from nobody else
===================  =============================================================================

**What is kept from whom**: each server sees uniform values alone, whatever the inputs are, as long as both follow the
protocol (semi-honest) and do not collude. A dealer sees nothing and must not collude with either.

A preprocessor makes the correlations of a plan (`store.Preprocessor`); a plan comes from running the computation on zeros
(`session.traced`). Offline and online costs are booked apart for every operation.

Source: Mohassel and Zhang, "SecureML" (IEEE S&P 2017); Demmler, Schneider, Zohner, "ABY" (NDSS 2015) for the three kinds of
shares and the conversions between them.
"""
