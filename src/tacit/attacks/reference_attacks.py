"""Membership scores from one shared set of reference models.

A reference model is trained as the target was, on records that the adversary chose; of each record it knows which
reference models saw it (IN) and which did not (OUT). All attacks here read the same answers of the same reference
models, gathered once in an `Evidence`; several of them need none. The higher a score, the more the record looks like a
member. Write phi for the logit-scaled confidence log p_y - log(1 - p_y) in the true class y:

==================  ===================================  ==================================================================
attack              needs                                score
==================  ===================================  ==================================================================
`Loss`              nothing                              log p_y
`MaxConfidence`     nothing                              log max p, the label not used
`Entropy`           nothing                              minus the entropy of the answer, the label not used
`ModifiedEntropy`   nothing                              minus the entropy modified so that a sure, wrong answer counts high
`AttackP`           population                           share of other records with a smaller p_y
`AttackR`           references OUT                       share of the record's OUT models with a smaller p_y
`LiRA`              references OUT, online IN too        likelihood ratio of phi under two Gaussians; offline one tail
`StudentLiRA`       references OUT, online IN too        the same, means and variances integrated out under a fitted prior
`RMIA`              references OUT, online IN too        share of other records whose p_y rose less over the reference models
==================  ===================================  ==================================================================

Of several queries a record (augmentations), `LiRA` and `StudentLiRA` take the answers as independent: log-likelihood
ratios add up, deviations are joined as Stouffer's sum / sqrt(q). All others average their score over the queries.

What is kept secret from whom: nothing here protects. What leaks is what the target answered, and its training data
only through that.

What we changed is said where the attacks are: `tacit.attacks.score_attacks`, `tacit.attacks.likelihood_ratio`,
`tacit.attacks.rmia`. What they read is in `tacit.attacks.evidence`.

Source:
    N. Carlini, S. Chien, M. Nasr, S. Song, A. Terzis, F. Tramèr. Membership Inference Attacks From First Principles.
    IEEE S&P 2022. S. Zarifzadeh, P. Liu, R. Shokri. Low-Cost High-Power Membership Inference Attacks. ICML 2024.
    J. Ye, A. Maddi, S. K. Murakonda, V. Bindschaedler, R. Shokri. Enhanced Membership Inference Attacks against Machine
    Learning Models. CCS 2022 (P and R). L. Song, P. Mittal. Systematic Evaluation of Privacy Risks of Machine Learning
    Models. USENIX Security 2021 (modified entropy). S. Yeom et al., CSF 2018 (loss). A. Salem et al., NDSS 2019
    (confidence and entropy).
"""

from __future__ import annotations

from tacit.attacks.evidence import ReferenceAttack
from tacit.attacks.likelihood_ratio import LiRA, StudentLiRA
from tacit.attacks.rmia import RMIA
from tacit.attacks.score_attacks import (
    AttackP,
    AttackR,
    Entropy,
    Loss,
    MaxConfidence,
    ModifiedEntropy,
)

REFERENCE_ATTACKS: tuple[ReferenceAttack, ...] = (
    Loss(), MaxConfidence(), Entropy(), ModifiedEntropy(), AttackP(), AttackR(),
    LiRA(online=True), LiRA(online=False), StudentLiRA(online=True), StudentLiRA(online=False),
    RMIA(online=True), RMIA(online=False),
)  # fmt: skip
