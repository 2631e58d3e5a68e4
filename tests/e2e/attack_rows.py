"""The rows of the attack list that concern handshakes, tokens, the push address and callbacks: what is sent, what must come of it, and
where it is shown besides the end-to-end tests that carry the row's mark, `@pytest.mark.attack("A7")`.
"""

from __future__ import annotations

from dataclasses import dataclass

HANDSHAKE = "edge/src/core/handshake_tests.rs"
ACCEPT = "edge/src/accept.rs"
AUTH = "edge/src/core/auth/tests.rs"
SOCKETS = "edge/tests/sockets"
BRIDGE = "sdk/functions/tests/bridge/cases.rs"
WEBHOOK = "broker/src/http/webhook.rs"
BROKER = "broker/src/http/tests.rs"
COMPAT = "broker/src/http/compat_tests.rs"


@dataclass(frozen=True)
class Row:
    """`tests`: those of cargo, each `FILE::NAME`."""

    attack: str
    answer: str
    tests: tuple[str, ...] = ()


ROWS = {
    "A1": Row("version 8, missing, repeated", "426 and Sec-WebSocket-Version: 13", (f"{HANDSHAKE}::every_bad_request_gets_its_answer",)),
    "A2": Row("POST, HTTP/1.0, no Upgrade, a list in Connection", "405, 400, 426, 101", (f"{HANDSHAKE}::tokens_are_compared_as_the_rfc_says",)),
    "A3": Row("a key of other length, no base64, twice; Host missing, twice", "400", (f"{HANDSHAKE}::every_bad_request_gets_its_answer",)),
    "A4": Row("200 fields, 70 KiB and 1 MiB in one, a target of 64 KiB", "431, 414, closed, little work", (f"{HANDSHAKE}::every_bad_request_gets_its_answer",)),
    "A5": Row("subprotocols: spaces without end, no ASCII, 1000 names", "400 (431 where the head is too long)", (f"{HANDSHAKE}::every_bad_request_gets_its_answer",)),
    "A6": Row("lengths of two kinds, +5, chunk of 2^64, bare LF, obs-fold, space before colon", "400, closed", (f"{HANDSHAKE}::every_bad_request_gets_its_answer",)),
    "A7": Row("bytes behind the head, also with a wrong version", "400; they reach nothing", (f"{HANDSHAKE}::every_bad_request_gets_its_answer",)),
    "A8": Row("2000 that are silent or slow, also in TLS", "closed at 10 s; others get in; a bound per address", (f"{SOCKETS}/handshake.rs::idle_strangers_are_closed_after_ten_seconds_and_others_served", f"{SOCKETS}/limits.rs::an_address_has_so_many_connections_and_gets_them_back")),
    "A9": Row("2000 handshakes a second", "503 above the API's bound, 429 above the address's", (f"{SOCKETS}/limits.rs::an_address_may_come_so_often",)),
    "A10": Row("every origin but the listed one", "403", (f"{HANDSHAKE}::origins_match_exactly", f"{SOCKETS}/limits.rs::a10_a11_only_listed_origins_come_in_whatever_cookie_they_bring")),
    "A11": Row("a good cookie from a foreign origin", "403", (f"{SOCKETS}/limits.rs::a10_a11_only_listed_origins_come_in_whatever_cookie_they_bring",)),
    "A12": Row("forged X-Forwarded-For, Forwarded, absolute target, Host", "ignored or 400; nobody is called", (f"{SOCKETS}/limits.rs::a12_an_address_is_believed_of_trusted_proxies_only",)),
    "A25": Row("alg none, another key's kind, keys in the header, kid, crit", "401; nobody is called", (f"{AUTH}::a25_what_the_header_says_opens_nothing",)),
    "A26": Row("exp, nbf, aud, iss of other kinds, wrong, missing", "401", (f"{AUTH}::a26_claims_of_the_wrong_kind_are_wrong",)),
    "A27": Row("an issuer that is an address; one kid of two issuers", "401; nobody is called", (f"{AUTH}::a27_a_key_id_picks_among_configured_keys_only",)),
    "A28": Row("1 MiB, 10,000 deep, claims twice", "401 (431 where the head is too long), little work", (f"{AUTH}::a28_what_is_huge_deep_or_twofold_is_refused_at_once",)),
    "A29": Row("a token in the query", "in no output", (f"{AUTH}::a29_nothing_of_the_token_stays_in_the_request",)),
    "A30": Row("a token that ends, or a key withdrawn, while a connection is open", "closed with 1008 within a minute", (f"{SOCKETS}/auth.rs::a_connection_ends_with_its_token",)),
    "A31": Row("ids that are guessed, or another's", "ids say nothing; 404, 403 and 410 look alike", (f"{ACCEPT}::a_million_ids_are_distinct_and_lead_to_no_other",)),
    "A32": Row("signatures missing, wrong, of other bytes, old, again", "401; again: done once", (f"{WEBHOOK}::only_whole_recent_signatures_of_a_key_pass", f"{COMPAT}::an_unsigned_push_is_refused_where_signatures_are_asked_for")),
    "A33": Row("1 GiB, endless, a bomb, 100,000 at once, deep, other kinds", "413, 415, 400", (f"{COMPAT}::what_is_wrong_with_a_push_is_said_and_the_connection_stays",)),
    "A34": Row("one key twice, with another body, a hundred at once", "one effect; 422", (f"{COMPAT}::a_push_with_a_key_happens_once", f"{BROKER}::an_idempotency_key_repeats_the_answer_and_not_the_effect")),
    "A35": Row("callbacks to addresses inside, without consent, redirects, endless answers", "refused; cut", (f"{BRIDGE}::redirects_are_not_followed", f"{BRIDGE}::an_endless_answer_is_cut_and_ignored_where_it_does_not_matter", f"{BRIDGE}::wrong_settings_are_refused_at_once", "sdk/functions/tests/bridge/callbacks.rs::without_consent_nobody_is_let_in_and_no_message_is_sent", "proto/https/src/resolver.rs::a_name_that_leads_where_no_function_may_be_leads_nowhere")),
    "A36": Row("metrics and HTTP without a token, of other sites, markup, labels", "401, 403, escaped, few labels", (f"{BROKER}::pages_of_other_sites_act_on_nothing", f"{BROKER}::every_route_but_health_asks_who_comes")),
}
