"""FER+'s votes are fetched whole, or not at all."""

import hashlib

from fer_utils import places
from fer_utils.data import addresses, download

import pytest


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A file that stands for the published one, at an address that needs no network."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    source = tmp_path / "published.csv"
    source.write_text("votes")
    monkeypatch.setattr(addresses, "VOTES_ADDRESS", source.as_uri())
    monkeypatch.setattr(addresses, "VOTES_SHA256", hashlib.sha256(b"votes").hexdigest())
    return source


def test_votes_are_put_into_data_once(published, tmp_path, capsys):
    download.download_votes()
    target = tmp_path / "data" / addresses.VOTES_FILE
    assert target.read_text() == "votes"
    published.unlink()
    download.download_votes()
    assert "is there already" in capsys.readouterr().out


@pytest.mark.parametrize(("spoil", "says"), [("other", "is not the file"), ("", "could not be fetched")])
def test_a_download_that_fails_leaves_nothing_and_says_the_way_out(published, tmp_path, spoil, says):
    if spoil:
        published.write_text(spoil)
    else:
        published.unlink()
    with pytest.raises(places.NotFoundHere, match=rf"{says}.*by hand and put it at data/{addresses.VOTES_FILE}"):
        download.download_votes()
    assert not any((tmp_path / "data").iterdir())
