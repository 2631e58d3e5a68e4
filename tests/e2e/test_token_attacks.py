"""Tokens that are forged, wrong, huge or seen by others, and ids that are guessed (attack rows A25 to A31). What each role may do:
test_auth.py."""

from __future__ import annotations

import base64
import json
import os
import random
import socket
import subprocess
import time
import urllib.parse
from pathlib import Path

import pytest
import requests

import wire
from attack import ACCEPTED, REFUSED, Canary, Target, connects_to, http_answers
from credentials import SECRET, RsaKey, encoded, jwt, mint, unsigned
from harness import Dev, binary
from test_handshake import mutate

pytestmark = pytest.mark.short

OTHER = "the-other-issuer-s-secret-which-is-as-long"
LEEWAY = 10
ROLES = ["publisher", "operator", "read_only"]


def later(seconds: int = 600) -> int:
    return int(time.time()) + seconds


def config(folder: Path, roles: dict[str, dict]) -> str:
    keys = f'{{ algorithm = "HS256", secret = "{SECRET}" }}, {{ algorithm = "RS256", public_key_file = "{folder}/public.pem" }}'
    text = f"""
[broker]
tail_bytes = "1MiB"
[[api]]
name = "jwt"
path = "/jwt"
registration = "accept"
auth = {{ kind = "jwt", algorithms = ["HS256", "RS256"], keys = [{keys}], leeway = "{LEEWAY}s" }}
[[api]]
name = "rsa"
path = "/rsa"
registration = "accept"
auth = {{ kind = "jwt", algorithms = ["RS256"], keys = [{keys.partition("}, ")[2]}] }}
[[api]]
name = "strict"
path = "/strict"
registration = "accept"
auth = {{ kind = "jwt", algorithms = ["HS256"], keys = [{{ algorithm = "HS256", secret = "{SECRET}" }}], issuer = "https://id.example", audience = ["chat", "news"], required = ["exp", "nbf"] }}
"""
    (folder / "secret").write_text(SECRET)
    text += f"""
[[api]]
name = "kept"
path = "/kept"
registration = "accept"
auth = {{ kind = "jwt", algorithms = ["HS256"], keys = [{{ algorithm = "HS256", secret_file = "{folder}/secret" }}] }}
"""
    for name, secret in (("ours", SECRET), ("theirs", OTHER)):
        text += f"""
[[api]]
name = "{name}"
path = "/{name}"
registration = "accept"
auth = {{ kind = "jwt", algorithms = ["HS256"], keys = [{{ kid = "k", algorithm = "HS256", secret = "{secret}" }}], issuer = "{name}" }}
"""
    for role, token in roles.items():
        text += f'\n[[broker.tokens]]\nname = "{token["name"]}"\nsha256 = "{token["sha256"]}"\nrole = "{role}"\n'
    return text


@pytest.fixture(scope="module")
def target(module_folder):
    key = RsaKey(module_folder, "rsa")
    (module_folder / "public.pem").write_bytes(key.public())
    roles = {role: mint(role.replace("_", "-"), role) for role in ROLES}
    node = Dev(module_folder, config=config(module_folder, roles)).start()
    target = Target(node, module_folder, token=roles["operator"]["token"])
    target.tokens = {role: token["token"] for role, token in roles.items()}
    target.key = key
    target.folder = module_folder
    yield target
    target.stop()
    assert node.process.stop() == 0


def ask(target, path: str, token: str | None) -> int:
    """The status that a client with this token gets."""
    extra = [f"Authorization: Bearer {token}"] if token is not None else []
    answer = wire.request(target.ws, wire.handshake(target.ws, path, extra=extra), seconds=10)
    if answer.status == 401:
        assert answer.headers["www-authenticate"].startswith("Bearer")
    return answer.status


def refuse(target, under, path: str, tokens: list[str], *, status: int = 401) -> None:
    """Each of these is refused, calls nobody, and is said to nobody."""
    signatures = [token.rpartition(".")[2] for token in tokens]
    secrets = tuple(signature for signature in signatures if len(signature) > 20)
    with under(target, secrets=secrets) as attack:
        attack.counts(REFUSED, len(tokens))
        for token in tokens:
            attack.answered(ask(target, path, token), status)


@pytest.mark.attack("A25")
@pytest.mark.parametrize("alg", ["none", "None", "nOnE", "", "hs256", "HS384", "PS256", ["HS256"], None, 256])
def test_an_algorithm_that_is_not_configured_is_401(target, under, alg):
    claims = {"sub": "ada", "exp": later()}
    text = unsigned(claims, {"alg": alg})
    refuse(target, under, "/jwt", [f"{text}.", text, jwt(claims, {"alg": alg})])


@pytest.mark.attack("A25")
def test_a_signature_that_is_none_or_another_s_is_401(target, under):
    good = jwt({"sub": "ada", "exp": later()})
    text, _, signature = good.rpartition(".")
    changed = f"{text}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}"
    refuse(target, under, "/jwt", [f"{text}.", text, changed, f"{text}.{signature[:20]}", f"{good}=", f"{good}.{signature}", jwt({"sub": "ada", "exp": later()}, secret=OTHER)])
    assert ask(target, "/jwt", good) == 101


@pytest.mark.attack("A25")
def test_the_public_key_is_no_secret(target, under):
    claims = {"sub": "ada", "exp": later()}
    public = target.key.public()
    der = base64.b64decode(b"".join(public.splitlines()[1:-1]))
    for path in ("/jwt", "/rsa"):
        refuse(target, under, path, [jwt(claims, secret=secret) for secret in (public, public.strip(), der)])
    # HS256 is not in this API's list, whatever the secret
    refuse(target, under, "/rsa", [jwt(claims)])
    # and the key is good for what it is
    assert ask(target, "/rsa", target.key.token()) == 101


@pytest.mark.attack("A25")
def test_keys_that_a_token_brings_or_names_are_not_looked_at(target, under):
    own, claims = "the attacker's own key, which is long enough for it", {"sub": "ada", "exp": later()}
    with Canary() as canary:
        brought = [
            {"jwk": {"kty": "oct", "k": encoded(own.encode())}},
            {"jku": f"{canary.url}/jwks"},
            {"x5u": f"{canary.url}/chain"},
            {"x5c": [base64.b64encode(own.encode()).decode()]},
            {"kid": f"{canary.url}/jwks"},
            {"kid": "../../dev/null"},
            {"kid": "../../../../proc/sys/kernel/hostname"},
            {"kid": "k' union select 'x"},
        ]
        tokens = [jwt(claims, {"alg": "HS256"} | extra, own) for extra in brought]
        # the file named is empty, and so is the key
        tokens += [jwt(claims, {"alg": "HS256", "kid": "../../dev/null"}, b""), jwt(claims, {"alg": "HS256"}, b"")]
        refuse(target, under, "/jwt", tokens)
        assert not canary.was_called


@pytest.mark.attack("A25")
@pytest.mark.parametrize("header", [{"crit": ["exp"]}, {"crit": ["b64"], "b64": False}, {"crit": []}, {"crit": "exp"}], ids=str)
def test_what_must_be_understood_is_not(target, under, header):
    refuse(target, under, "/jwt", [jwt({"sub": "ada", "exp": later()}, {"alg": "HS256"} | header)])


@pytest.mark.attack("A26")
@pytest.mark.parametrize("claim", ["exp", "nbf"])
@pytest.mark.parametrize("value", ["str", "1800000000.5", "1e300", "1e999", "-1", "-1e300", "18446744073709551615", "18446744073709551616", "null", "true", "[1]", "{}"])
def test_a_time_of_another_kind_is_401(target, under, claim, value):
    now = int(time.time())
    good = {"exp": str(now + 600), "nbf": str(now - 600)}
    value = f'"{good[claim]}"' if value == "str" else value
    claims = ",".join(f'"{name}":{value if name == claim else good[name]}' for name in good)
    refuse(target, under, "/jwt" if claim == "exp" else "/strict", [jwt(f'{{"sub":"ada","iss":"https://id.example","aud":"chat",{claims}}}'.encode())])


STRICT = {"sub": "ada", "iss": "https://id.example", "aud": "chat"}


def strict(**changes) -> dict:
    claims = STRICT | {"exp": later(), "nbf": later(-600)} | changes
    return {name: value for name, value in claims.items() if value is not ...}


@pytest.mark.attack("A26")
@pytest.mark.parametrize(
    "changes",
    [
        {"exp": ...},
        {"nbf": ...},
        {"sub": ...},
        {"aud": ...},
        {"iss": ...},
        {"aud": "other"},
        {"aud": ["other"]},
        {"aud": []},
        {"aud": ["chat", 1]},
        {"aud": {"chat": 1}},
        {"aud": "CHAT"},
        {"iss": "https://id.example/"},
        {"iss": "https://id.example.evil.com"},
        {"iss": ["https://id.example"]},
        {"iss": None},
        {"sub": ["ada"]},
        {"sub": ""},
        {"sub": "ada\x1b[2J"},
        {"sub": "a" * 2000},
    ],
    ids=str,
)
def test_claims_that_are_missing_or_others_are_401(target, under, changes):
    refuse(target, under, "/strict", [jwt(strict(**changes))])


@pytest.mark.attack("A26")
def test_clocks_may_differ_by_the_leeway_and_no_more(target, under):
    now = int(time.time())
    # a few seconds on either side: the clock goes on while this runs
    refuse(target, under, "/jwt", [jwt({"sub": "ada", "exp": now - LEEWAY - 1}), jwt({"sub": "ada", "exp": now + 600, "nbf": now + LEEWAY + 30})])
    with under(target) as attack:
        attack.counts(ACCEPTED, 4)
        for token in (jwt({"sub": "ada", "exp": later(5 - LEEWAY)}), jwt({"sub": "ada", "exp": later(), "nbf": later(LEEWAY - 2)})):
            attack.answered(ask(target, "/jwt", token), 101)
        for aud in (["other", "news"], "chat"):
            attack.answered(ask(target, "/strict", jwt(strict(aud=aud))), 101)


@pytest.mark.attack("A27")
def test_an_issuer_that_is_an_address_is_not_asked_for_its_keys(target, under):
    with Canary() as canary:
        issuers = [canary.url, f"{canary.url}/.well-known/openid-configuration", "http://169.254.169.254/", "file:///etc/passwd"]
        tokens = [jwt({"sub": "ada", "exp": later(), "iss": issuer}, {"alg": "HS256", "kid": "unknown"}, secret) for issuer in issuers for secret in (OTHER, SECRET)]
        refuse(target, under, "/ours", tokens)
        assert not canary.was_called and not connects_to(target.node.edge, "169.254.169.254")


@pytest.mark.attack("A27")
def test_one_key_id_of_two_issuers_is_two_keys(target, under):
    def of(issuer: str, secret: str) -> str:
        return jwt({"sub": "ada", "exp": later(), "iss": issuer}, {"alg": "HS256", "kid": "k"}, secret)

    ours, theirs = of("ours", SECRET), of("theirs", OTHER)
    # first those that are good: what was learnt of one issuer's key must not do for the other's
    with under(target) as attack:
        attack.counts(ACCEPTED, 2)
        attack.answered(ask(target, "/ours", ours), 101)
        attack.answered(ask(target, "/theirs", theirs), 101)
    refuse(target, under, "/ours", [theirs, of("ours", OTHER), of("theirs", SECRET)])
    refuse(target, under, "/theirs", [ours, of("theirs", SECRET), of("ours", OTHER)])


def deep(depth: int) -> bytes:
    return b'{"sub":"ada","exp":%d,"x":' % later() + b"[" * depth + b"1" + b"]" * depth + b"}"


@pytest.mark.attack("A28")
@pytest.mark.parametrize(
    ("make", "status"),
    [
        # the head is too long, whatever is in it
        (lambda: "x" * (1 << 20), 431),
        (lambda: jwt(b"[" * 100_000), 431),
        (lambda: "x" * 15_000, 401),
        (lambda: "." * 8_000, 401),
        (lambda: jwt(b"[" * 10_000), 401),
        (lambda: jwt(b"[" * 5_000), 401),
        (lambda: jwt(deep(2_500)), 401),
        (lambda: jwt(b'{"a":' * 1_000), 401),
        (lambda: jwt({}, {"alg": "HS256", "x": json.loads("[" * 500 + "]" * 500)}), 401),
        (lambda: jwt(b'{"sub":"ada","exp":%d,"exp":%d}' % (1, later())), 401),
        (lambda: jwt(b'{"sub":"ada","sub":"bob","exp":%d}' % later()), 401),
        (lambda: jwt(b'{"sub":"ada","exp":%d,"\\u0065xp":1}' % later()), 401),
        (lambda: "", 401),
        (lambda: "..", 401),
    ],
    ids=["1-mib", "100000-deep", "15-kb", "dots", "10000-deep", "5000-deep", "2500-deep-signed", "objects", "deep-header", "exp-twice", "sub-twice", "exp-twice-escaped", "empty", "nothing"],
)
def test_what_is_huge_deep_or_twofold_is_refused_cheaply(target, under, make, status):
    token = make()
    signature = token.rpartition(".")[2]
    with under(target, metric=REFUSED, secrets=(signature,) if len(signature) > 20 else ()) as attack:
        # the whole request, its connection included
        attack.costs(lambda: attack.answered(ask(target, "/jwt", token), status), 0.005 if status == 401 else 0.05)


@pytest.mark.attack("A29")
def test_a_token_in_the_query_is_in_no_output(target, under):
    good, expired = jwt({"sub": "query-user", "exp": later()}), jwt({"sub": "query-user", "exp": 1})
    escaped = "".join(f"%{byte:02X}" for byte in good.encode())
    queries = {
        f"room=7&access_token={good}": 101,
        f"access%5Ftoken={good}&room=7": 101,
        f"room=7&access_token={escaped}": 101,
        f"access_token={expired}": 401,
        f"access_token={good}&access_token={good}": 401,
        f"access_token={good}x": 401,
        f"ACCESS_TOKEN={good}": 401,
    }
    secrets = (good, good.rpartition(".")[2], expired.rpartition(".")[2], escaped)
    with under(target, secrets=secrets) as attack:
        attack.counts(ACCEPTED, 3)
        attack.counts(REFUSED, 4)
        answers, clients = [], []
        for query, status in queries.items():
            sock = socket.create_connection(target.ws, timeout=10)
            sock.sendall(wire.handshake(target.ws, f"/jwt?{query}"))
            answer, _ = wire.read_answer(sock)
            attack.answered(answer.status, status)
            answers.append(f"{answer}")
            clients.append(sock)
        shown = {"answers": "".join(answers)} | outputs(target)
        for sock in clients:
            sock.close()
    assert "query-user" in shown["/v1/connections"] and "room=7" in shown["tail"]
    for place, text in shown.items():
        for secret in secrets:
            assert secret not in text, f"{place} holds {secret[:12]}…"


def outputs(target) -> dict[str, str]:
    """All that operators are shown."""
    http, headers = target.node.broker.http(), {"Authorization": f"Bearer {target.token}"}
    paths = ["/v1/connections", "/v1/log?partition=0", "/v1/groups", "/v1/cluster", "/metrics"]
    shown = {path: requests.get(http + path, headers=headers, timeout=20).text for path in paths}
    shown["edge metrics"] = requests.get(target.node.edge.http("edge-http") + "/metrics", timeout=10).text
    for words in (["tail", "--from", "earliest", "--json", "--raw"], ["tail", "--from", "earliest"], ["connections"], ["state", "--json"]):
        argv = [str(binary()), *words, "--broker", target.node.grpc, "--token", target.token]
        shown[words[0] if words[-1] != "--raw" else "tail raw"] = subprocess.run(argv, capture_output=True, timeout=120, check=True, stdin=subprocess.DEVNULL).stdout.decode()
    return shown


@pytest.mark.attack("A30")
def test_a_connection_ends_with_its_token(target, under):
    with under(target, metric=("trunkline_edge_closes_total", {"cause": "token_expired"})) as attack:
        token = jwt({"sub": "ada", "exp": later(3 - LEEWAY)})
        with wire.Socket(target.ws, "/jwt", extra=[f"Authorization: Bearer {token}"]) as client:
            closed = client.expect_close(1008, seconds=30)
            attack.answered(closed.close_code, 1008)
            assert closed.payload[2:] == b"token expired"


@pytest.mark.attack("A30")
def test_a_connection_ends_when_what_it_came_in_by_is_withdrawn(target, under):
    """The key is replaced in its file: no token that it signed is good any more."""
    token, of_the_new = (jwt({"sub": "ada", "exp": later()}, secret=secret) for secret in (SECRET, OTHER))
    with under(target, metric=("trunkline_edge_closes_total", {"cause": "token_expired"}), secrets=(SECRET, OTHER)) as attack:
        with wire.Socket(target.ws, "/kept", extra=[f"Authorization: Bearer {token}"]) as client:
            new = target.folder / "secret.new"
            new.write_text(OTHER)
            new.replace(target.folder / "secret")
            # without being asked anything it is closed within the minute
            closed = client.expect_close(1008, seconds=60)
            attack.answered(closed.close_code, 1008)
            assert closed.payload[2:] == b"token revoked"
        attack.answered(ask(target, "/kept", token), 401)
        attack.answered(ask(target, "/kept", of_the_new), 101)


ABSENT = "AAECAwQFBgcICQoLDA0ODw"


@pytest.mark.attack("A31")
def test_ids_say_nothing_of_each_other(target, under):
    with under(target) as attack:
        attack.counts(ACCEPTED, 100)
        clients = [wire.Socket(target.ws, "/echo") for _ in range(100)]
        headers = {"Authorization": f"Bearer {target.token}"}
        rows = requests.get(f"{target.node.broker.http()}/v1/connections?api=echo&limit=1000", headers=headers, timeout=10).json()["connections"]
        ids = [base64.urlsafe_b64decode(row["connection"] + "==") for row in rows]
        for client in clients:
            client.close()
    assert len(set(ids)) == len(ids) >= 100
    assert {len(id_) for id_ in ids} == {16}, "128 bits"
    for length in (4, 12):
        assert len({id_[:length] for id_ in ids}) == len({id_[-length:] for id_ in ids}) == len(ids), "ids share a part"


@pytest.mark.attack("A31")
@pytest.mark.parametrize(("role", "status"), [(None, 401), ("read_only", 403), ("publisher", 410)])
@pytest.mark.parametrize("doing", ["push", "close"])
def test_whose_an_id_is_shows_in_no_answer(target, under, role, status, doing):
    """Who may not act on a connection gets the same bytes for one that there is and one that there never was; who may, learns that it is gone."""
    http = target.node.broker.http()
    headers = {"Authorization": f"Bearer {target.tokens[role]}"} if role else {}

    def act(id_: str) -> requests.Response:
        if doing == "push":
            return requests.post(f"{http}/v1/connections/{id_}/messages", data="x", headers=headers, timeout=10)
        return requests.delete(f"{http}/v1/connections/{id_}", headers=headers, timeout=10)

    token = jwt({"sub": "owner", "exp": later()})
    with wire.Socket(target.ws, "/jwt", extra=[f"Authorization: Bearer {token}"]) as client:
        listed = requests.get(f"{http}/v1/connections?api=jwt", headers={"Authorization": f"Bearer {target.token}"}, timeout=10).json()
        live = [row["connection"] for row in listed["connections"] if row["principal"] == "owner"][-1]
        guesses = [ABSENT, live[:-4] + "AAAA"] if role == "publisher" else [ABSENT, live[:-4] + "AAAA", live]
        with under(target, metric=http_answers("api", status)) as attack:
            answers = [act(guess) for guess in guesses]
            for answer in answers:
                attack.answered(answer.status_code, status)
        assert len({answer.content for answer in answers}) == 1
        client.close()


def test_tokens_changed_at_random_are_refused(target, under):
    seed = int(os.environ.get("TRUNKLINE_FUZZ_SEED") or random.randrange(1 << 32))
    print(f"seed {seed}")
    chance = random.Random(seed)
    good = jwt({"sub": "ada", "exp": later()})
    with under(target, row="fuzz", metric=REFUSED, secrets=(good.rpartition(".")[2],)) as attack:
        end = time.monotonic() + float(os.environ.get("TRUNKLINE_FUZZ_SECONDS", "5"))
        tried = 0
        while time.monotonic() < end:
            changed = bytearray(good.encode())
            mutate(changed, chance)
            if bytes(changed) == good.encode() or len(changed) > 1500:
                continue
            query = urllib.parse.quote_from_bytes(bytes(changed), safe="")
            raw = wire.handshake(target.ws, f"/jwt?access_token={query}" if len(query) < 1900 else "/jwt")
            attack.answered(wire.request(target.ws, raw, seconds=10).status, 401)
            tried += 1
        attack.note(f"{tried} random tokens, seed {seed}")


def test_claims_made_at_random_let_nobody_in_whose_token_has_ended(target, under):
    seed = int(os.environ.get("TRUNKLINE_FUZZ_SEED") or random.randrange(1 << 32))
    print(f"seed {seed}")
    chance = random.Random(seed)
    values = [0, 1, -1, 1.5, 1e300, "", "ada", "https://id.example", "chat", ["chat"], [], {}, None, True, "\x1b[31m", "\ud7ff", 2**53, 2**64, later(), later(-600), str(later())]
    with under(target, row="fuzz", metric=REFUSED) as attack:
        end = time.monotonic() + float(os.environ.get("TRUNKLINE_FUZZ_SECONDS", "5")) / 2
        tried = 0
        while time.monotonic() < end:
            claims = strict()
            for name in chance.sample(list(claims), chance.randint(0, 3)):
                claims[name] = chance.choice(values)
            good = all(
                [
                    type(claims["exp"]) is int and claims["exp"] > time.time() and claims["exp"] < 253_402_300_800,
                    type(claims["nbf"]) is int and 0 <= claims["nbf"] < time.time(),
                    claims["iss"] == "https://id.example",
                    claims["aud"] in ("chat", ["chat"]),
                    isinstance(claims["sub"], str) and claims["sub"] and "\x1b" not in claims["sub"],
                ]
            )
            attack.answered(ask(target, "/strict", jwt(claims)), 101 if good else 401)
            tried += 1
        attack.note(f"{tried} random claims, seed {seed}")
