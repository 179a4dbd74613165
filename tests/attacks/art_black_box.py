"""ART's black-box attack on scores that are handed over: run by the interpreter that has ART.

    python art_black_box.py scores.npz found.npz

Reads shadow models' answers with labels and membership, and a target's answers with labels; writes the probability that ART
gives of each of the target's records being a member. Knows nothing of tacit.
"""

import sys

import numpy as np
import torch
from art.attacks.inference.membership_inference import MembershipInferenceBlackBox
from art.estimators.classification import PyTorchClassifier


def main(scores: str, to: str) -> None:
    given = np.load(scores, allow_pickle=False)
    classes = given["answers"].shape[1]
    # The attack asks for an estimator of the right kind, and never calls it where answers are given.
    model = torch.nn.Linear(1, classes)
    estimator = PyTorchClassifier(
        model=model, loss=torch.nn.CrossEntropyLoss(), input_shape=(1,), nb_classes=classes,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
    )  # fmt: skip
    inside, answers = given["shadow_inside"], given["shadow_answers"]
    labels = np.eye(classes, dtype=np.float32)[given["shadow_labels"]]
    truth = np.eye(classes, dtype=np.float32)[given["labels"]]
    found = {}
    for kind in ("gb", "rf"):  # gradient boosting, random forest
        attack = MembershipInferenceBlackBox(estimator, attack_model_type=kind)
        attack.fit(
            y=labels[inside], test_y=labels[~inside], pred=answers[inside], test_pred=answers[~inside],
        )  # fmt: skip
        said = attack.infer(None, y=truth, pred=given["answers"], probabilities=True)
        found[kind] = np.asarray(said, np.float64).reshape(len(truth), -1)[:, -1]
    np.savez(to, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
