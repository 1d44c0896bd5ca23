"""The request in another language."""

from __future__ import annotations

from ssd_engine.evaluation.forms.material import Translation
from ssd_engine.evaluation.forms.turn import Form, asked

LANGUAGES = {
    "Spanish": "Traducción al español:",
    "French": "Traduction en français :",
    "German": "Übersetzung ins Deutsche:",
    "Russian": "Перевод на русский:",
    "Chinese": "中文翻译:",
}
"""Language -> what stands before a translation into it."""


def _form(language: str) -> Form:
    return Form(
        name=f"in {language}",
        description=f"the request in {language}; the translation is the target's, unchecked",
        ask=lambda request: asked(Translation(request=request.text, language=language)),
    )


LANGUAGE_FORMS = tuple(map(_form, LANGUAGES))
