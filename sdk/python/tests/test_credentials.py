"""Tokens and TLS: how addresses are meant, who is let in, what is said of who is not, and what is never said."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import traceback
from dataclasses import replace

import grpc
import pytest
from conftest import Pki
from fake_broker import FakeBroker

import trunkline
from trunkline import Client, Denied, Handler, SettingError, Subscriber, Unreachable, Untrusted
from trunkline._credentials import Credentials, credentials
from trunkline.v1 import trunkline_pb2 as wire

TOKEN = "tl_dGhlLXRva2Vu"
ID = "BAAAAAAAAAAAAAAAAAAAAA"
APPLIED = wire.SubmitResponse(results=[wire.CommandResult(status=wire.Status(code=wire.CODE_APPLIED), offset=7)])


def targets(addresses: str | list[str]) -> list[str]:
    return credentials(addresses, None, None)[1]


# ---- what is given ---------------------------------------------------------------------------------------------------------


def test_addresses():
    assert targets("127.0.0.1:7070") == targets("http://127.0.0.1:7070/") == ["127.0.0.1:7070"]
    assert targets("http://[::1]:7070") == ["[::1]:7070"]
    assert targets(["a:1", "b:2"]) == targets("a:1, b:2") == ["a:1", "b:2"]
    for wrong in ("", "http://", "http://host", "host", "not an address", "ftp://host:1", "host:x", "host:1/path", "u:p@host:1", []):
        with pytest.raises(SettingError) as refused:
            targets(wrong)
        assert "u:p" not in str(refused.value)


def test_https_or_an_authority_means_tls_for_every_broker(pki: Pki):
    plain, _ = credentials("host:1", None, None)
    assert (plain.is_tls, plain.roots) == (False, None)
    assert credentials("https://host:1", None, None)[0].is_tls
    for ca in (pki.ca, str(pki.ca), pki.ca.read_bytes(), pki.ca.read_text()):
        safe, addresses = credentials(["host:1", "https://host:2"], None, ca)
        assert safe.is_tls and addresses == ["host:1", "host:2"]
        assert safe.target("told:3") == safe.target("https://told:3") == "told:3"
        with pytest.raises(SettingError, match="plain text"):
            safe.target("http://told:3")
    with pytest.raises(SettingError, match="plain text"):
        credentials("http://host:1", None, pki.ca)
    with pytest.raises(SettingError, match="plain text"):
        credentials(["https://host:1", "http://host:2"], None, None)
    with pytest.raises(SettingError, match="speaks TLS"):
        plain.target("https://told:3")


@pytest.mark.parametrize("wrong", [b"", b"junk", "/nowhere/ca.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_an_authority_that_cannot_be_read_is_refused_at_once(wrong):
    if wrong == b"":
        assert not credentials("host:1", None, wrong)[0].is_tls, "none"
    else:
        with pytest.raises(SettingError):
            credentials("host:1", None, wrong)


def test_an_authority_may_stand_among_others_and_words(pki: Pki):
    text = f"# die Behörde\n{pki.other.read_text()}\nmore\n{pki.ca.read_text()}"
    made, _ = credentials("host:1", None, text)
    assert made.roots is not None and made.roots.count(b"BEGIN CERTIFICATE") == 2


def test_what_is_not_given_comes_from_the_environment(monkeypatch, pki: Pki):
    assert credentials(None, None, None)[1] == ["127.0.0.1:7070"]
    monkeypatch.setenv("TRUNKLINE_BROKER", "a:1,b:2")
    monkeypatch.setenv("TRUNKLINE_TOKEN", TOKEN)
    monkeypatch.setenv("TRUNKLINE_CA", str(pki.ca))
    found, addresses = credentials(None, None, None)
    assert addresses == ["a:1", "b:2"] and found.token == TOKEN and found.is_tls
    given, addresses = credentials("c:3", "other", b"")
    assert addresses == ["c:3"] and given.token == "other" and not given.is_tls
    assert credentials("c:3", "", b"")[0].metadata == ()


# ---- what is never shown ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [f"{TOKEN}\n", f"{TOKEN} x", f"{TOKEN}é", f"{TOKEN}\0"])
def test_a_token_with_characters_that_are_none_of_it_is_refused_and_not_shown(wrong):
    with pytest.raises(SettingError) as refused:
        Client("host:1", token=wrong)
    assert TOKEN not in "".join(traceback.format_exception(refused.value))


def test_a_token_is_never_shown():
    made = Credentials(token=TOKEN)
    client, subscriber = Client("host:1", token=TOKEN), Subscriber("host:1", token=TOKEN)
    for thing in (made, replace(made, is_tls=True), client, subscriber, vars(subscriber)):
        assert TOKEN not in f"{thing!r} {thing!s}"


# ---- over the wire ---------------------------------------------------------------------------------------------------------


def test_calls_carry_the_token_over_tls(pki: Pki):
    async def main() -> None:
        broker = await FakeBroker(token=TOKEN, cert=pki.cert, key=pki.key).start()
        broker.submit.append(APPLIED)
        async with Client(f"https://{broker.address}", token=TOKEN, ca=pki.ca) as client:
            await client.publish("room", "x")
            assert (await client.connection(ID)).api == "test"
        joined = asyncio.Event()
        subscriber = Subscriber(broker.address, token=TOKEN, ca=pki.ca)
        # the broker tells its address without a scheme, as brokers do
        running = asyncio.ensure_future(subscriber.run(Handler(), joined=lambda broker: joined.set()))
        async with asyncio.timeout(20):
            await joined.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await broker.stop()

    asyncio.run(main())


@pytest.mark.parametrize("token", [None, "tl_another"])
def test_a_token_that_is_refused_is_an_error_at_once_and_for_good(caplog, token):
    async def main() -> None:
        broker = await FakeBroker(token=TOKEN).start()
        with pytest.raises(Denied) as denied:
            await Subscriber(broker.address, token=token).run(Handler())
        assert broker.calls == 1
        async with Client([broker.address, broker.address], token=token) as client:
            with pytest.raises(Denied) as refused:
                await client.publish("room", "x", key="k")
            with pytest.raises(Denied):
                await client.connection(ID)
        assert broker.calls == 3
        for error in (denied.value, refused.value):
            assert error.grpc_code is grpc.StatusCode.UNAUTHENTICATED and error.code is trunkline.Code.NOT_AUTHORIZED
            assert error.retry is trunkline.Retry.NO and "TRUNKLINE_TOKEN" in str(error)
            assert "tl_another" not in "".join(traceback.format_exception(error))
        await broker.stop()

    with caplog.at_level(logging.DEBUG):
        asyncio.run(main())
    assert "tl_another" not in caplog.text


def test_a_broker_of_another_authority_gets_no_token_and_is_named_so(pki: Pki, caplog):
    async def main() -> None:
        broker = await FakeBroker(token=TOKEN, cert=pki.cert, key=pki.key).start()
        good = await FakeBroker(token=TOKEN, cert=pki.cert, key=pki.key).start()
        for address, ca in ((broker.address, pki.other), (broker.address.replace("127.0.0.1", "localhost"), pki.ca)):
            async with Client(address, token=TOKEN, ca=ca) as client:
                with pytest.raises(Untrusted, match="has not proved who it is"):
                    await client.publish("room", "x", key="k")
                with pytest.raises(Untrusted) as error:
                    await client.connection(ID)
                assert error.value.retry is trunkline.Retry.NO and not error.value.may_have_happened
        assert broker.calls == 0
        # another one does
        good.submit.append(APPLIED)
        async with Client([broker.address.replace("127.0.0.1", "localhost"), good.address], token=TOKEN, ca=pki.ca) as client:
            await client.publish("room", "x")
        running = asyncio.ensure_future(Subscriber(broker.address, token=TOKEN, ca=pki.other).run(Handler()))
        async with asyncio.timeout(20):
            while "has not proved who it is" not in caplog.text:
                await asyncio.sleep(0.02)
        assert not running.done(), "certificates are renewed"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await broker.stop()
        await good.stop()

    asyncio.run(main())


def test_one_who_speaks_plain_text_to_tls_or_tls_to_plain_text_is_told(pki: Pki):
    async def main() -> None:
        safe, plain = await FakeBroker(cert=pki.cert, key=pki.key).start(), await FakeBroker().start()
        async with Client(safe.address, timeout=1) as client:
            with pytest.raises(Unreachable, match="https:// perhaps"):
                await client.publish("room", "x")
        async with Client(plain.address, ca=pki.ca, timeout=1) as client:
            with pytest.raises(Unreachable, match="does not speak TLS there"):
                await client.publish("room", "x")
        await safe.stop()
        await plain.stop()

    asyncio.run(main())


def test_grpc_writes_nothing_about_an_authority_that_does_not_count(pki: Pki, tmp_path):
    """Whoever tries again would have it on standard error each time."""
    program = tmp_path / "program.py"
    program.write_text(
        "import asyncio, sys, trunkline\n"
        "async def main():\n"
        "    async with trunkline.Client(sys.argv[1], ca=sys.argv[2]) as client:\n"
        "        try:\n"
        "            await client.publish('room', 'x')\n"
        "        except trunkline.Untrusted:\n"
        "            print('untrusted')\n"
        "asyncio.run(main())\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}

    async def main() -> None:
        broker = await FakeBroker(cert=pki.cert, key=pki.key).start()
        process = await asyncio.create_subprocess_exec(
            sys.executable, program, broker.address, pki.other, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        async with asyncio.timeout(60):
            out, err = await process.communicate()
        assert (out, err) == (b"untrusted\n", b"")
        await broker.stop()

    asyncio.run(main())
