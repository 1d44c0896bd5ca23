"""Attack forms by name. A form says how something is asked, and nothing of what: harmless requests have it too."""

from __future__ import annotations

from ssd_engine.evaluation.forms.beginnings import BEGINNING_FORMS
from ssd_engine.evaluation.forms.encodings import ENCODING_FORMS
from ssd_engine.evaluation.forms.follow_up import FOLLOW_UP_FORMS
from ssd_engine.evaluation.forms.languages import LANGUAGE_FORMS
from ssd_engine.evaluation.forms.payload import PAYLOAD_FORMS
from ssd_engine.evaluation.forms.templates import TEMPLATE_FORMS
from ssd_engine.evaluation.forms.turn import Form, asked

PLAIN = Form(name="plain", description="the request as it is", ask=lambda request: asked(request.text))
FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        *TEMPLATE_FORMS,
        *PAYLOAD_FORMS,
        *ENCODING_FORMS,
        *LANGUAGE_FORMS,
        *FOLLOW_UP_FORMS,
        *BEGINNING_FORMS,
    )
}
