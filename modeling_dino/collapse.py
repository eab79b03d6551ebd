# Copyright 2026 The modeling-dino authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Notices when pretraining has collapsed, and says what to change.

A collapsed teacher says the same of every image: its centered and sharpened output is uniform (entropy near
ln(projection_dim)), or certain of one prototype (entropy near 0), or anything else that is constant. Entropy alone
does not tell a collapse from a beginning, where it is near ln(projection_dim) too; what does is how much the output
depends on the image (`image_information`, which is at most the distance of the entropy from ln(projection_dim)): 0.06
nats and more were measured for untrained networks on photographs, 0.0000 for collapsed ones.
Paper: https://arxiv.org/abs/2104.14294, section 5.3 and figure 7.
"""

from dataclasses import asdict, dataclass


INFORMATION_OF_A_CONSTANT = 1e-4  # nats
ENTROPY_OF_CERTAINTY = 1e-3  # of ln(projection_dim)
NEAR_UNIFORM = 0.99  # of ln(projection_dim)
EXPLOSION = 2.0  # of ln(projection_dim), or of the first loss
EXPLOSION_PATIENCE = 10  # steps

CAUSES = {
    "uniform": (
        "the teacher's output has collapsed: it is uniform, whatever the image (entropy {entropy:.4f} of at most "
        "{maximum:.4f} nats). Check that the images differ; lower teacher_temperature (0.04 is usual), learning_rate"
    ),
    "one prototype": (
        "the teacher's output has collapsed: it is certain of one prototype (entropy {entropy:.4f} of at most "
        "{maximum:.4f} nats). Raise teacher_temperature, lower center_momentum (0.9 is usual) or learning_rate"
    ),
    "constant": (
        "the teacher's output has collapsed: it is the same for every image (entropy {entropy:.4f} of at most "
        "{maximum:.4f} nats). Check that the images differ; lower center_momentum (0.9 is usual) and learning_rate, "
        "raise teacher_momentum, keep norm_last_layer"
    ),
    "exploding": (
        "the loss explodes: {loss:.4f}, where guessing costs {maximum:.4f} nats. Lower learning_rate or "
        "max_grad_norm, lengthen warmup_epochs, keep norm_last_layer"
    ),
}


@dataclass
class CollapseWatch:
    """
    Told of each optimizer step, names a collapse once it has lasted.

    Args:
        patience: steps that it lasts before it is named; an explosion is named after 10.
        first_loss, kind, since, named: what it remembers: the first step's loss; of which collapse the last step was a
            sign, how many steps there have been signs, and whether they were named.
    """

    patience: int = 50
    first_loss: float | None = None
    kind: str | None = None
    since: int = 0
    named: bool = False

    def update(self, loss: float, entropy: float, information: float | None, maximum: float) -> str | None:
        """
        Args:
            loss, entropy, information: of the step, in nats; the information is None if there was only one image.
            maximum: ln(projection_dim).

        Returns:
            which collapse it is and what to change, once, when it has lasted as long as the patience.
        """
        self.first_loss = loss if self.first_loss is None else self.first_loss
        before, self.kind = self.kind, self._kind(loss, entropy, information, maximum)
        if self.kind is None:
            self.since, self.named = 0, False
            return None
        # a collapsed teacher's entropy may swing, but an explosion counts on its own
        goes_on = before is not None and (before == "exploding") == (self.kind == "exploding")
        self.since = self.since + 1 if goes_on else 1
        patience = min(EXPLOSION_PATIENCE, self.patience) if self.kind == "exploding" else self.patience
        if self.named or self.since < patience:
            return None
        self.named = True
        return CAUSES[self.kind].format(loss=loss, entropy=entropy, maximum=maximum)

    def _kind(self, loss: float, entropy: float, information: float | None, maximum: float) -> str | None:
        if loss > EXPLOSION * max(maximum, self.first_loss):
            return "exploding"
        if entropy < ENTROPY_OF_CERTAINTY * maximum:
            return "one prototype"
        if information is None or information >= INFORMATION_OF_A_CONSTANT:
            return None
        return "uniform" if entropy > NEAR_UNIFORM * maximum else "constant"

    def state(self) -> dict:
        """What to save, and to make it again from."""
        return asdict(self)


__all__ = ["CollapseWatch"]
