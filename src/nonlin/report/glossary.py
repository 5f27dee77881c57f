"""Words of the field, explained where they stand: a button in the text that opens a note, without any script."""

import re

from markupsafe import Markup, escape

#: Words that are marked in a text, each with its explanation.
TERMS = {
    "Holm": "When many differences are judged at once, one looks real by chance. Holm's correction widens the "
            "intervals so that the chance of even one false finding stays below 5 %.",
    "C0": "Continuous, but its derivative jumps or has no bound. C1 is so in its derivative, and so on.",
    "decades": "Powers of ten: two decades are a factor of 100.",
    "nats": "Units of information, like bits but with natural logarithms: one nat is 1.44 bits.",
    "kurtosis": "How much rare, very large values stand out: 3 for a bell curve, more where a few values are huge.",
    "gate": "In a gated block one projection (the gate), passed through the activation, multiplies another (the up "
            "projection): it lets each value through, or shuts it.",
    "unit normal": "Random numbers from a bell curve with mean 0 and variance 1.",
    "RMSNorm": "Divides a vector by its root mean square, so that its size is always the same.",
    "bits per byte": "How many bits the model needs for one byte of text that it has not seen: 8 is knowing nothing.",
    "residual": "The path that carries a block's input past it, unchanged, to be added to its output.",
}
_FORMS = {"decade": "decades", "nat": "nats", "Kurtosis": "kurtosis", "gating": "gate", "Gate": "gate"}
_PATTERN = re.compile(r"(?<![\w-])(" + "|".join(sorted(map(re.escape, [*TERMS, *_FORMS]), key=len, reverse=True))
                      + r")(?![\w-])")


class Glossary:
    """Marks the words of a page; ``notes`` are the explanations of those marked, to stand once in the page."""

    def __init__(self) -> None:
        self.used: dict[str, None] = {}

    def mark(self, *texts: str) -> list[Markup]:
        """Return texts that belong together as HTML: in them, a word is a button where it first stands.

        >>> [str(text) for text in Glossary().mark("Holm & Holm")]
        ['<button type="button" class="term" popovertarget="term-holm">Holm</button> &amp; Holm']
        """
        seen: set[str] = set()

        def button(found: re.Match[str]) -> str:
            term = _FORMS.get(found[1], found[1])
            if term in seen:
                return found[1]
            seen.add(term)
            self.used[term] = None
            return f'<button type="button" class="term" popovertarget="{_id(term)}">{found[1]}</button>'

        return [Markup(_PATTERN.sub(button, str(escape(text)))) for text in texts]

    def notes(self) -> Markup:
        """Return the explanations of the words that were marked."""
        return Markup("").join(Markup('<div popover class="note" id="{}"><b>{}</b> {}</div>').format(
            _id(term), term, TERMS[term]) for term in self.used)


def _id(term: str) -> str:
    return "term-" + re.sub(r"\W+", "-", term).lower()
