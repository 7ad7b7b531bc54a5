"""Nothing that looks like a secret gets into a report, and nothing else is hidden."""

import json
import logging

import pytest
import yaml
from small_spec import small
from test_cli import tailrace
from test_jobs import details

from cluster.attempts import say
from cluster.checkpoint import RunDirectory
from cluster.display import make_display
from cluster.jobs import describe
from cluster.launch import _logged_to
from cluster.redact import HIDDEN, copy, redacted, text
from cluster.report import write_report
from cluster.spec import dump_spec, parse_spec

SECRETS = {
    "HF_TOKEN": "kept-to-myself-1", "WANDB_API_KEY": "kept-to-myself-2", "RAY_AUTH_TOKEN": "kept-to-myself-3",
    "AWS_SECRET_ACCESS_KEY": "kept/to+myself/4", "DB_PASSWORD": "kept to myself 5",
}  # fmt: skip
PLAIN = {
    "RAY_AUTH_MODE": "token",
    "GOOGLE_APPLICATION_CREDENTIALS": "/home/me/key.json",
    "RAY_AUTH_TOKEN_PATH": "~/token",
}


@pytest.fixture
def said(monkeypatch) -> str:
    """What a library might say of all that it knows."""
    for name, value in (SECRETS | PLAIN).items():
        monkeypatch.setenv(name, value)
    return "refused " + ", ".join(f"with {value}" for value in (SECRETS | PLAIN).values())


def keeps(shown: str) -> bool:
    """Whether the secrets are out of it and the rest is not."""
    return not any(value in shown for value in SECRETS.values()) and all(value in shown for value in PLAIN.values())


def test_secrets_of_the_environment_get_nowhere(said, tmp_path, capfd):
    assert not keeps(said)
    assert keeps(text(said))
    run = RunDirectory(tmp_path / "run")
    run.create()
    (run.path / "spec.yaml").write_text(dump_spec(parse_spec(small(), "small")))
    run.journal("restarted", reason=said, left=1)
    run.journal("drafter_lost", worker="rollout-0", said=said)
    events = (run.path / "journal.jsonl").read_text().splitlines()
    assert len(events) == 2
    assert all(map(keeps, events))
    assert json.loads(events[1])["worker"] == "rollout-0"
    with _logged_to(run.logs / "driver.log"):
        try:
            raise ValueError(said)
        except ValueError:
            logging.getLogger("library").exception("it says: %s", said)
    log = (run.logs / "driver.log").read_text()
    assert "Traceback" in log
    assert keeps(log)
    write_report(run.path)
    assert not any(value in (run.path / "report.html").read_text() for value in SECRETS.values())
    make_display(parse_spec(small(), "small")).note(said)
    say(said)
    printed = capfd.readouterr()
    assert keeps(printed.out)
    assert printed.err == ""
    job = describe(details("FAILED", message=said))
    assert job is not None
    assert keeps(job.reason)


@pytest.mark.parametrize(
    "address", ["http://me:s3cr3t-s3cr3t@h:1", "x://h/?token=s3cr3t-s3cr3t", "s3://k:s3cr3t-s3cr3t@b"]
)
def test_an_address_with_a_secret_is_refused_without_repeating_it(tmp_path, address):
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(small()))
    for words in (
        ["list", "--address", address],
        ["plan", tmp_path / "spec.yaml", "--set", f"model.source={address}/x/y"],
    ):
        result = tailrace(*words)
        assert result.exit_code == 2
        assert "s3cr3t" not in result.output


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
        "AWS_SECRET_ACCESS_KEY=s3cr3t/x",
        "private_key: s3cr3t",
        "OPENAI_KEY = 's3cr3t'",
        "Authorization: Token s3cr3t s3cr3t",
        "Set-Cookie: session=s3cr3t; path=/s3cr3t",
        "psql --password s3cr3t",
        "AccountName=a;AccountKey=s3cr3t;",
    ],
)
def test_secrets_inside_texts_are_hidden(said):
    assert "s3cr3t" in said
    assert "s3cr3t" not in text(said)
    assert "s3cr3t" not in str(redacted([{"why": [said], said: 1}]))


@pytest.mark.parametrize(
    "said",
    ["next token: 17", "max_new_token: 5", "sort_key: name", "--max-token 5", "tokens per second: 9.5", "key: 1"],
)
def test_what_only_sounds_like_a_secret_stays(said):
    assert text(said) == said


def test_no_line_of_a_secret_of_several_gets_into_a_copy_of_a_log(tmp_path, monkeypatch):
    monkeypatch.setenv("SIGNING_KEY", "-----BEGIN KEY-----\nline-of-key-1\nline-of-key-2\n-----END KEY-----")
    (tmp_path / "log").write_text("it is\nline-of-key-1\nand\nline-of-key-2\n")
    copy(tmp_path / "log", tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == f"it is\n{HIDDEN}\nand\n{HIDDEN}\n"


def test_a_spec_without_secrets_stays_as_it_is():
    data = yaml.safe_load(dump_spec(parse_spec(small(), "small")))
    assert data["allocator"]["budget_tokens"] is None
    assert redacted(data) == data


@pytest.mark.timeout(60)
@pytest.mark.parametrize("part", ["x", "a-", "?token", "-token", "secret ", "eyJ-", "a:/", "eyJ", "basic "])
def test_endless_words_are_looked_through_in_time(part):
    """A prompt of a million letters in a journal, a progress bar without line ends in a log."""
    assert text(part * (2**18 // len(part)))
