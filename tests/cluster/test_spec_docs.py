"""docs/spec.md says what the spec's classes say."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from cluster.spec import Spec
from cluster.spec_docs import reference

DOCS = Path(__file__).parents[2] / "docs" / "spec.md"


def sections(annotation: object) -> Iterator[type[BaseModel]]:
    """Every class that a spec is composed of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from sections(field.annotation)
    for part in getattr(annotation, "__args__", ()):
        yield from sections(part)


def test_the_page_is_up_to_date():
    assert DOCS.read_text(encoding="utf-8").rstrip("\n") == reference().rstrip("\n"), (
        "docs/spec.md is stale; mend it with: python -m cluster.spec_docs > docs/spec.md"
    )


def test_every_field_of_every_section_is_described():
    page = reference()
    for section in set(sections(Spec)) - {Spec}:
        for name, field in section.model_fields.items():
            row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
            assert row.count(" | ") == 3, row
            assert field.description is None or " ".join(field.description.split()) in page, f"{section}.{name}"
            assert field.description or list(sections(field.annotation)), f"{section.__name__}.{name} has no docstring"


def test_every_section_has_its_table():
    page = reference()
    for name in Spec.model_fields:
        assert f"\n## {name}" in page
    for path in ("model.tiny", "learner.objective", "task.sources[] with kind: jsonl", "recipe[] with stage: rl"):
        assert f"\n## {path}\n" in page
