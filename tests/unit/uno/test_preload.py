# SPDX-License-Identifier: LGPL-2.1-or-later
"""The conversation that preloads an office, with an office that refuses all that LibreOffice would."""

import pytest

from ooodd.config import PRELOADABLE
from ooodd.errors import ProtocolError
from ooodd.uno.conversation import Conversation, new_preload
from urp_office import OfficeSide


def converse(office: OfficeSide, preload: Conversation[list[str]]) -> list[str] | None:
    """Carry bytes between the two until both wait."""
    to_preload = office.greeting()
    while to_preload:
        to_preload = office.receive(preload.receive(to_preload))
    return preload.result


def test_each_kind_is_made_and_closed() -> None:
    office = OfficeSide()
    assert converse(office, new_preload(PRELOADABLE)) == []
    assert office.made == [f"private:factory/{name}" for name in ("swriter", "scalc", "simpress", "sdraw", "smath")]
    assert office.closed == len(PRELOADABLE)


def test_a_kind_that_the_office_has_not_is_the_result() -> None:
    office = OfficeSide()
    office.missing = {"private:factory/scalc"}
    assert converse(office, new_preload(["calc", "writer"])) == ["calc"]
    assert office.closed == 1


def test_an_exception_of_the_office_ends_it() -> None:
    class Raising(OfficeSide):
        def _load(self, _url: str, _rest: bytes) -> bytes:
            raise StopIteration  # which this office makes an exception of UNO of

    with pytest.raises(ProtocolError, match=r"the office raised com\.sun\.star\.container\.NoSuchElementException"):
        converse(Raising(), new_preload(["writer"]))
