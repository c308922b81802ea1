"""Passwords, tokens and signatures are hidden, and everything else stays readable."""

import pytest

from tuner.errors import ConfigError
from tuner.redact import has_credentials, redacted, refuse_credentials

HIDDEN = {
    "postgresql://tuner:hunter2@db:5432/mlflow": "postgresql://***@db:5432/mlflow",
    "postgresql+psycopg2://tuner:p@ss/w0rd@db/mlflow": "postgresql+psycopg2://***@db/mlflow",
    "postgresql://db/mlflow?user=tuner&password=hunter2": "postgresql://db/mlflow?user=tuner&password=***",
    "https://ghp_token@host/x": "https://***@host/x",
    "HTTPS://user:pw@host": "HTTPS://***@host",
    "s3://AKIAKEY:7/se+cret@bucket/train*.tfrecord": "s3://***@bucket/train*.tfrecord",
    "simplecache::s3://AKIAKEY:secret@bucket/a": "simplecache::s3://***@bucket/a",
    "https://b.s3.amazonaws.com/k?X-Amz-Credential=AKIA%2F1&X-Amz-Date=2026&X-Amz-Signature=ab12": (
        "https://b.s3.amazonaws.com/k?X-Amz-Credential=***&X-Amz-Date=2026&X-Amz-Signature=***"
    ),
    "https://b/k?AWSAccessKeyId=AKIA&Signature=a%2B&Expires=1": "https://b/k?AWSAccessKeyId=***&Signature=***&Expires=1",
    "https://a.blob.core.windows.net/c/k?sv=2024&sig=ab%3D": "https://a.blob.core.windows.net/c/k?sv=2024&sig=***",
    "refused: 'http://u:pw@one/x' and s3://k:s@two": "refused: 'http://***@one/x' and s3://***@two",
    "http://u:pw@one/x\nhttp://two/a@b": "http://***@one/x\nhttp://two/a@b",
}
PLAIN = [
    "sqlite:///mlflow.db",
    "http://127.0.0.1:5000",
    "http://server:5000/api?page=2",
    "s3://bucket/train?.tfrecord",
    "abfs://container@account.dfs.core.windows.net/train*.tfrecord",
    "sftp://user@host/videos/*.tfrecord",
    "data/train*.tfrecord",
    "mail me@host: it took 3:10",
]


@pytest.mark.parametrize("text", HIDDEN)
def test_credentials_are_hidden(text: str) -> None:
    assert redacted(text) == HIDDEN[text]
    assert has_credentials(text) and not has_credentials(redacted(text))


@pytest.mark.parametrize("text", PLAIN)
def test_text_without_credentials_is_not_changed(text: str) -> None:
    assert redacted(text) == text and not has_credentials(text)
    refuse_credentials(text, "--data", "nothing to say")


def test_a_refusal_names_the_option_and_hides_the_secret() -> None:
    with pytest.raises(ConfigError) as told:
        refuse_credentials("s3://AKIA:hunter2@bucket/a", "data.train", "set AWS_SECRET_ACCESS_KEY")
    assert str(told.value) == (
        "data.train: s3://***@bucket/a holds credentials, which others could read there; set AWS_SECRET_ACCESS_KEY"
    )
