"""Nothing that looks like a secret gets into a report, and nothing else is hidden."""

import pytest
import yaml
from small_spec import small

from cluster.redact import HIDDEN, redacted, text
from cluster.spec import dump_spec, parse_spec


@pytest.mark.parametrize(
    "key", ["token", "hf_token", "apiKey", "API-KEY", "password", "db_password", "clientSecret", "access_tokens"]
)
def test_values_of_keys_that_name_a_secret_are_hidden(key):
    assert redacted({"config": {key: "s3cr3t"}}) == {"config": {key: HIDDEN}}
    assert redacted({key: 12345678}) == {key: HIDDEN}
    assert redacted({key: {"user": "ada"}}) == {key: HIDDEN}


@pytest.mark.parametrize(
    "said",
    [
        "https://ada:s3cr3t@store.example/path",
        "https://ada:p@s3cr3t@store.example/path",
        "https://store.example/a?x=1&token=s3cr3t#part",
        "https://store.example/a?X-Amz-Signature=s3cr3t",
        "Authorization: Bearer s3cr3ts3cr3t",
        "DB_PASSWORD=s3cr3t python",
        '{"api_key": "s3cr3t"}',
        "the token hf_s3cr3ts3cr3ts3cr3t was refused",
    ],
)
def test_secrets_inside_texts_are_hidden(said):
    assert "s3cr3t" in said
    assert "s3cr3t" not in text(said)
    assert "s3cr3t" not in str(redacted([{"why": [said], said: 1}]))


def test_a_spec_without_secrets_stays_as_it_is():
    data = yaml.safe_load(dump_spec(parse_spec(small(), "small")))
    assert data["allocator"]["budget_tokens"] is None
    assert redacted(data) == data
