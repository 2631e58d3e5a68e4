//! Whatever a function answers and whatever a client sends: an answer, or a failure.

use proptest::prelude::*;

use super::*;

fn api(dialect: Dialect) -> ApiSettings {
    ApiSettings {
        registration: Some(url("r")),
        transmission: Some(url("t")),
        cleanup: Some(url("c")),
        routes: ["$connect", "$default", "a"].map(|key| (key.to_owned(), url("x"))).into(),
        route_selection: Some("${request.body.action}".parse().unwrap()),
        integration_response: true,
        ..ApiSettings::new("a", dialect)
    }
}

fn dialects() -> impl Strategy<Value = Dialect> {
    prop_oneof![Just(Dialect::Scf), Just(Dialect::Aws), Just(Dialect::CloudEvents)]
}

/// Bytes that are often nearly right.
fn bodies() -> impl Strategy<Value = Vec<u8>> {
    let keys = prop_oneof![
        Just("errNo"),
        Just("errMsg"),
        Just("statusCode"),
        Just("body"),
        Just("headers"),
        Just("isBase64Encoded"),
        Just("subprotocol"),
        Just("websocket"),
        Just("errorMessage")
    ];
    let values = prop_oneof![
        Just("0"),
        Just("200"),
        Just("-1"),
        Just("401"),
        Just("99999"),
        Just("null"),
        Just("true"),
        Just("\"AP8B\""),
        Just("\"!\""),
        Just("{}"),
        Just("[]"),
        Just("{\"dataType\":\"binary\",\"data\":\"AP8B\"}"),
        Just("{\"Sec-WebSocket-Protocol\":\"v1\"}")
    ];
    let object = prop::collection::vec((keys, values), 0..4).prop_map(|pairs| {
        let pairs: Vec<String> = pairs.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
        format!("{{{}}}", pairs.join(",")).into_bytes()
    });
    prop_oneof![3 => object, 1 => prop::collection::vec(any::<u8>(), 0..64)]
}

proptest! {
    #[test]
    fn an_answer_is_judged(dialect in dialects(), status in 100u16..600, body in bodies(), whole in any::<bool>()) {
        let settings = api(dialect);
        let mut reply = reply(status, body);
        if !whole {
            reply.body = None;
        }
        let opened = v1::ConnectionOpened { subprotocols: vec!["v1".into()], ..Default::default() };
        match decide(&settings, &reply, &opened) {
            Ok(Decision::Reject { status, .. }) => prop_assert!((400..600).contains(&status)),
            Ok(Decision::Accept { subprotocol }) => prop_assert!(subprotocol.is_none_or(|name| name == "v1")),
            Err(failure) => prop_assert!(matches!(failure.status(), 502 | 504)),
        }
        let _ = (response(&settings, &reply), done(&settings, &reply));
    }

    #[test]
    fn an_event_becomes_json(dialect in dialects(), text in ".*", bytes in prop::collection::vec(any::<u8>(), 0..64), query in ".*") {
        let settings = ApiSettings { forward_request: true, ..api(dialect) };
        let opened = v1::ConnectionOpened {
            query,
            peer: text.clone(),
            principal: text.clone(),
            subprotocols: vec![text.clone()],
            headers: vec![header(&text, &text)],
            ..Default::default()
        };
        let call = registration(&settings, &place(), &opened).unwrap();
        prop_assert!(parsed(&call).is_object());
        let who = Identity { host: text.clone(), principal: text.clone(), ..Identity::default() };
        let closed = closed(1000, &text, CloseCause::Client);
        for message in [Message::from(text), Message::binary(bytes)] {
            let call = sent(transmission(&settings, &place(), &who, &message));
            prop_assert!(dialect == Dialect::CloudEvents || parsed(&call).is_object());
        }
        if let Some(call) = cleanup(&settings, &place(), &who, &closed) {
            prop_assert!(parsed(&call).is_object());
        }
    }
}
