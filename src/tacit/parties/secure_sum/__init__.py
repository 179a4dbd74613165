r"""Secure aggregation: the server learns the sum of the participants' updates, and no single one.

[6] Bonawitz, Ivanov, Kreuter, Marcedone, McMahan, Patel, Ramage, Segal, Seth, "Practical secure aggregation for
privacy-preserving machine learning", CCS 2017 (figure 4; section, figure and theorem numbers recalled). The k-regular
graph: Bell, Bonawitz, Gascon, Lepoint, Raykova, "Secure single-server aggregation with (poly)logarithmic overhead", CCS
2020.

Who holds what: each participant its records and its update x_u; the server the model. Kept from the server, even
together with some participants: everything about the x_u of the others but their sum over those who did not drop out.
Semi-honest: of anybody's holders at most t - 1 collude. Active: at most 2t - n - 1 do; two lists of survivors need t
signatures each, and who colludes signs both. Notation: b_u self-mask seed, s_uv pairwise secret, t threshold, U1 ⊇ U2 ⊇
U3 ⊇ U4 who answered each wave. A member's holders are its neighbours and itself; in the complete graph, everybody.

Steps. A member answers each wave of each round once, and never an earlier one.

* R0 AdvertiseKeys, once a session. u draws an X25519 key pair. (Active variant: signed with its registered Ed25519
  key.)
* R1 ShareKeys. Once a session, with every neighbour's key: HKDF of the Diffie-Hellman secret gives a sealing key for
  each direction, and s_uv. In every round r: u draws b_u and a recovery key q_u, Shamir-shares both among its holders,
  seals each holder's two shares for it (AES-256-GCM), and sends the server these, E(q_u; k_uv for all v) with the
  round's seeds k_uv = HMAC(s_uv, r), and commitments to b_u and q_u. From b_u and q_u themselves HMAC derives what PRG,
  E and the commitments use, so that none of these tells anything of another.
* R2 MaskedInput. u opens the shares that were sealed for it, quantises x_u to integers below 2^bits, and sends y_u =
  x_u + PRG(b_u) + sum_{v in U2: u<v} PRG(k'_uv) - sum_{v in U2: u>v} PRG(k'_uv) mod 2^width, width bits a value, where
  k'_uv = HMAC(k_uv, model): see below.
* R3 ConsistencyCheck, active variant only. u signs U3 as the server tells it, with the session's name and everybody's keys.
* R4 Unmask. u gets U3 (active: with at least t signatures on that very list), and this one list decides: of v in U3 it
  returns its share of b_v, of v in U2 \ U3 its share of q_v. Never both, never twice. The server recovers b_v, and the
  k_vu of those who dropped out from their E(q_v; .), and takes the masks away.

Changed from the paper, and why:

* The paper shares v's mask key s_sk, which the server recovers if v drops out, and so knows all of v's pairwise secrets
  for good. Here a fresh q_v is shared, which opens v's pairwise seeds of this round and says nothing of any other.
  Long-term keys are never recovered: one key pair serves both purposes of the paper's two (sealing and masks, kept
  apart by HKDF), the server computes no Diffie-Hellman secrets, and *a session's keys serve many rounds*. The argument:
  within a round the server's view is the paper's with k_uv in the place of PRG seeds from s_sk. Of v in U2 \ U3 it
  learns all k_vu (in the paper s_sk of v, hence all its pairwise seeds). Of v in U3 it learns b_v, while q_v stays
  behind fewer than t shares and E(q_v; .) is a stream used once: beside those of the paper's proof, one more hybrid
  replaces it by noise. Across rounds, the k_uv are outputs of a pseudorandom function under s_uv, which enters no
  message in any other way: one hybrid replaces them by independent seeds, after which rounds share nothing, since b_u,
  q_u and the polynomials are fresh in each. GCM meets no (key, nonce) twice: the nonce is the round, each direction of
  each pair has its key (bound to both numbers and public keys), and a member shares once a round.
* R1 of round r+1 rides on R4 of round r, so that a round costs two waves (active: three); the first of a session four
  (five).
* R is a power of two: width is the number of bits of n (2^bits - 1), the least that holds the paper's R = n (R_U - 1) +
  1.
* Two more values are summed the same way: the number of examples, by which updates are weighted without anybody's count
  being told; and the share of an update's values that had to be clipped.
* Pairwise masks depend on the model that a member was given. Between members who were given different ones they do not
  cancel: a server cannot isolate one member's update by handing the others a model from which theirs is known or zero
  (Pasquini, Francati, Ateniese, "Eluding secure aggregation in federated learning via model inconsistency", CCS 2022;
  recalled).
* By the commitments the server notices where shares that it uses do not fit. Where there are shares to spare, it finds
  out which are off (Reed-Solomon decoding), recovers the sum without them, and says who is at fault, or may be
  (`tacit.parties.secure_sum.recovery`).
* With noise (`Agreement.noise_multiplier`) an update is a sum of vectors of bounded norm, each of one record. u rounds it
  to a grid of integers and adds its share of a discrete Gaussian (`tacit.dp.noise`) in the place of stochastic rounding,
  and sends that plus a constant that keeps it from being negative. Width holds n such integers at their largest. The two
  values beside the update are 1 and 0: they tell nothing of the records.
* In the regular graph a round ends if more members drop out than the graph was chosen for, before anything is opened.

**Leaks**: to the server, the sums (values, examples, clipped share) over U3, who is in U1 to U4, and sizes; to a
member, the model of each round and which of its neighbours take part. Without noise nothing here bounds what a sum
says about one record, or what several sums say together: two over different members, from the same model, can be
subtracted.
**Cost**: bytes as `bytes_of_round`, and headers; masks: one a neighbour and one more at each member; at the server one a
survivor, and one for each pair of a survivor and a neighbour who dropped out.
"""
