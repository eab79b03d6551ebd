# SPDX-License-Identifier: Apache-2.0
"""Notices when pretraining has collapsed, and names what to change.

A collapsed teacher says the same of every image: its centered and sharpened output is uniform (entropy near
ln(projection_dim)), or certain of one prototype (entropy near 0), or anything else that is constant. Entropy alone
does not tell a collapse from a beginning, where it is near ln(projection_dim) too; what does is how much the output
depends on the image (`image_information`, which is at most the distance of the entropy from ln(projection_dim)): 0.06
nats and more were measured for untrained networks on photographs, 0.0000 for collapsed ones.
Paper: https://arxiv.org/abs/2104.14294, section 5.3 and figure 7.
"""

from dataclasses import dataclass, field


INFORMATION_OF_A_CONSTANT = 5e-4  # nats
ENTROPY_OF_CERTAINTY = 1e-3  # of ln(projection_dim)
NEAR_UNIFORM = 0.99  # of ln(projection_dim)
EXPLOSION = 2.0  # of ln(projection_dim), or of the first loss
EXPLOSION_PATIENCE = 10  # steps

COLLAPSE = (
    "the teacher's output{where} has collapsed: {what} (entropy {entropy:.4f} of at most {maximum:.4f} nats). {remedy}"
)
COLLAPSES = {  # what it is, and what to change
    "uniform": (
        "it is uniform, whatever the {thing}",
        "Check that the images differ; lower teacher_temperature (0.04 is usual) and learning_rate",
    ),
    "one prototype": (
        "it is certain of one prototype",
        "Raise teacher_temperature; lower center_momentum (0.9 is usual) and learning_rate",
    ),
    "constant": (
        "it is the same for every {thing}",
        "Check that the images differ; lower center_momentum (0.9 is usual) and learning_rate; "
        "raise teacher_momentum; keep norm_last_layer",
    ),
}
EXPLODES = (
    "the loss explodes: {loss:.4f}, where guessing costs {maximum:.4f} nats. Lower learning_rate or max_grad_norm, "
    "lengthen warmup_epochs, keep norm_last_layer"
)


@dataclass
class CollapseWatch:
    """
    Names a collapse, or a loss that explodes, when it has lasted for some steps.

    Args:
        patience: steps with signs of a collapse, less those without, before it is named; an explosion has 10.
        first_loss: loss of the first step.
        collapsed, exploding: numbers of steps with signs, less those without.
        named: signs that have been named and have not gone away since.
    """

    patience: int = 50
    first_loss: float | None = None
    collapsed: int = 0
    exploding: int = 0
    named: list[str] = field(default_factory=list)

    def update(
        self,
        loss: float | None,
        entropy: float | None,
        information: float | None,
        maximum: float,
        thing: str = "image",
    ) -> str | None:
        """
        Takes the metrics of a step.

        Args:
            loss, entropy, information: in nats; None for what is not watched. The information is None if there was
                only one image.
            maximum: ln(projection_dim).
            thing: of which the teacher says something: an image, or a patch.

        Returns:
            a warning with what to change, once, when signs have lasted.
        """
        self.first_loss = loss if self.first_loss is None else self.first_loss
        kind = None if entropy is None else collapse_of(entropy, information, maximum)
        # Counted back without signs, not anew: a collapsed teacher twitches.
        self.collapsed = self.collapsed + 1 if kind else max(self.collapsed - 1, 0)
        explodes = loss is not None and loss > EXPLOSION * max(maximum, self.first_loss)
        self.exploding = self.exploding + 1 if explodes else max(self.exploding - 1, 0)
        if explodes and self._is_new("exploding", self.exploding, EXPLOSION_PATIENCE):
            return EXPLODES.format(loss=loss, maximum=maximum)
        if kind and self._is_new("collapsed", self.collapsed, self.patience):
            what, remedy = COLLAPSES[kind]
            where = " at masked patches" if thing == "patch" else ""
            what = what.format(thing=thing)
            return COLLAPSE.format(where=where, what=what, remedy=remedy, entropy=entropy, maximum=maximum)
        self.named = [name for name in self.named if getattr(self, name)]
        return None

    def _is_new(self, name: str, steps: int, patience: int) -> bool:
        if steps < patience or name in self.named:
            return False
        self.named = [*self.named, name]
        return True


def collapse_of(entropy: float, information: float | None, maximum: float) -> str | None:
    """Returns the collapse that a step is a sign of: a key of `COLLAPSES`, if any."""
    if entropy < ENTROPY_OF_CERTAINTY * maximum:
        return "one prototype"
    if information is None or information >= INFORMATION_OF_A_CONSTANT:
        return None
    return "uniform" if entropy > NEAR_UNIFORM * maximum else "constant"
