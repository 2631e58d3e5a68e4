//! As the cloud gateway documented it, and what its documents leave to the reader.

use super::*;

fn settings() -> ApiSettings {
    ApiSettings {
        path: "/test/{testvar}".into(),
        stage: "prod".into(),
        registration: Some(url("registration")),
        transmission: Some(url("transmission")),
        cleanup: Some(url("cleanup")),
        ..ApiSettings::new("testsvc", Dialect::Scf)
    }
}

fn opened() -> v1::ConnectionOpened {
    v1::ConnectionOpened {
        peer: "10.0.2.14:51000".into(),
        path: "/test/a".into(),
        query: "name=J%C3%B6rg+B&x=1&x=2".into(),
        headers: vec![header("host", "h"), header("sec-websocket-extensions", "extension1,extension2")],
        subprotocols: vec!["chat".into(), "binary".into()],
        principal: "abdcdxxxxxxxsdfs".into(),
        parameters: vec![header("testvar", "a")],
        ..Default::default()
    }
}

#[test]
fn a_registration_is_the_documented_one() {
    let call = registration(&settings(), &place(), &opened()).unwrap();
    assert_eq!((call.url.clone(), call.content_type), (url("registration"), "application/json"));
    let expected = concat!(
        r#"{"requestContext":{"serviceName":"testsvc","path":"/test/{testvar}","httpMethod":"GET","#,
        r#""requestId":"ID","identity":{"secretId":"abdcdxxxxxxxsdfs"},"sourceIp":"10.0.2.14","stage":"prod","#,
        r#""websocketEnable":true},"websocket":{"action":"connecting","secConnectionID":"xawexasdfewezdfsdfeasd","#,
        r#""secWebSocketProtocol":"chat,binary","secWebSocketExtensions":"extension1,extension2"}}"#,
    );
    assert_eq!(text(&call), expected.replace("ID\",\"identity", &format!("{}\",\"identity", place().uuid())));
}

#[test]
fn what_was_not_offered_is_absent() {
    let bare = v1::ConnectionOpened { peer: "[::1]:1".into(), ..Default::default() };
    let event = parsed(&registration(&settings(), &place(), &bare).unwrap());
    assert_eq!(event["websocket"], json!({ "action": "connecting", "secConnectionID": ID }));
    assert_eq!(
        (&event["requestContext"]["identity"], &event["requestContext"]["sourceIp"]),
        (&json!({}), &json!("::1"))
    );
}

#[test]
fn the_request_is_told_where_that_is_asked_for() {
    let settings = ApiSettings { forward_request: true, ..settings() };
    let context = &parsed(&registration(&settings, &place(), &opened()).unwrap())["requestContext"];
    assert_eq!(context["queryString"], json!({ "name": "Jörg B", "x": "1" }), "the first of several");
    assert_eq!(context["pathParameters"], json!({ "testvar": "a" }));
    assert_eq!(context["headers"]["host"], "h");
}

#[test]
fn a_transmission_is_the_documented_one() {
    let call = sent(transmission(&settings(), &place(), &Identity::default(), &Message::from("say \"hi\" \u{1f600}")));
    assert_eq!(call.url, url("transmission"));
    assert_eq!(
        text(&call),
        r#"{"websocket":{"action":"data send","secConnectionID":"xawexasdfewezdfsdfeasd","dataType":"text","data":"say \"hi\" 😀"}}"#
    );
    let call = sent(transmission(&settings(), &place(), &Identity::default(), &Message::binary(vec![0, 255, 1])));
    assert_eq!(
        text(&call),
        r#"{"websocket":{"action":"data send","secConnectionID":"xawexasdfewezdfsdfeasd","dataType":"binary","data":"AP8B"}}"#
    );
}

#[test]
fn a_cleanup_is_the_documented_one_and_says_why() {
    let closed = closed(1001, "away", CloseCause::PingTimeout);
    let event = parsed(&cleanup(&settings(), &place(), &Identity::default(), &closed).unwrap());
    let expected = json!({ "websocket": { "action": "closing", "secConnectionID": ID,
        "closeCode": "1001", "closeReason": "away", "closeCause": "ping_timeout" } });
    assert_eq!(event, expected);
}

#[test]
fn every_value_of_websocket_is_a_string() {
    let closed = closed(1006, "", CloseCause::ClientVanished);
    let (settings, place, who) = (settings(), place(), Identity::default());
    let calls = [
        registration(&settings, &place, &opened()).unwrap(),
        sent(transmission(&settings, &place, &who, &Message::binary(vec![1]))),
        cleanup(&settings, &place, &who, &closed).unwrap(),
    ];
    for call in calls {
        let event = parsed(&call);
        let websocket = event["websocket"].as_object().unwrap();
        assert!(websocket.values().all(Value::is_string), "{websocket:?}");
    }
}

#[test]
fn the_status_comes_first_then_err_no() {
    let decide = |reply: &Reply| decide(&settings(), reply, &opened());
    let answer = concat!(
        r#"{"errNo":0,"errMsg":"ok","websocket":{"action":"connecting","secConnectionID":"x","#,
        r#""secWebSocketProtocol":"chat,binary","secWebSocketExtensions":"extension1,extension2"}}"#
    );
    let chosen = |name: Option<&str>| Ok(Decision::Accept { subprotocol: name.map(str::to_owned) });
    assert_eq!(decide(&reply(200, answer)), chosen(Some("chat")));
    assert_eq!(decide(&reply(200, r#"{"errNo":0,"errMsg":"ok"}"#)), chosen(None));
    let other = r#"{"errNo":0,"errMsg":"","websocket":{"secWebSocketProtocol":"other, binary"}}"#;
    assert_eq!(decide(&reply(200, other)), chosen(Some("binary")), "only what was offered");
    for status in [201, 204, 301, 400, 500] {
        let failure = decide(&reply(status, answer)).unwrap_err();
        assert!(matches!(failure, Failure::Status { status: found, .. } if found == status), "{status}: {failure}");
    }
    let no = decide(&reply(200, r#"{"errNo":101,"errMsg":"not found request context"}"#)).unwrap();
    let body = r#"{"errNo":101,"errMsg":"not found request context"}"#;
    assert_eq!(no, Decision::Reject { status: 403, body: body.into() });
    for nonsense in ["", "ok", "[]", "{}", r#"{"errNo":"0","errMsg":"ok"}"#, r#"{"errMsg":"ok"}"#, "null"] {
        assert!(matches!(decide(&reply(200, nonsense)), Err(Failure::Nonsense(_))), "{nonsense}");
    }
    let too_large = Reply { body: None, ..reply(200, "") };
    assert!(matches!(decide(&too_large), Err(Failure::TooLarge(_))));
}

#[test]
fn answers_of_transmissions_are_ignored_or_sent_on() {
    let plain = settings();
    assert_eq!(response(&plain, &reply(200, "anything")), Ok(None));
    assert_eq!(response(&plain, &Reply { body: None, ..reply(200, "") }), Ok(None), "ignored, however large");
    assert!(response(&plain, &reply(502, "")).is_err());
    let on = ApiSettings { integration_response: true, ..settings() };
    assert_eq!(response(&on, &reply(200, "")), Ok(None));
    assert_eq!(response(&on, &reply(200, "hello")), Ok(Some("hello".into())));
    assert_eq!(response(&on, &reply(200, vec![0xff, 0])), Ok(Some(Message::binary(vec![0xff, 0]))));
    let pushed = r#"{"websocket":{"action":"data send","secConnectionID":"x","dataType":"binary","data":"AP8B"}}"#;
    assert_eq!(response(&on, &reply(200, pushed)), Ok(Some(Message::binary(vec![0, 255, 1]))));
    for wrong in [r#"{"websocket":{"dataType":"binary","data":"!"}}"#, r#"{"websocket":{"dataType":"x","data":""}}"#] {
        assert!(matches!(response(&on, &reply(200, wrong)), Err(Failure::Nonsense(_))), "{wrong}");
    }
}

fn offered(headers: &[(&str, &str)]) -> Value {
    let headers = headers.iter().map(|(name, value)| header(name, value)).collect();
    let opened = v1::ConnectionOpened { headers, ..Default::default() };
    parsed(&registration(&settings(), &place(), &opened).unwrap())["websocket"]["secWebSocketExtensions"].clone()
}

#[test]
fn extensions_offered_by_several_headers_are_all_told() {
    let name = "sec-websocket-extensions";
    assert_eq!(offered(&[("host", "h"), (name, "a; x=1"), (name, "b")]), json!("a; x=1,b"));
    assert_eq!(offered(&[("host", "h")]), Value::Null);
}

#[test]
fn a_packed_answer_is_read_by_nobody() {
    let mut reply = reply(200, r#"{"errNo":0,"errMsg":"ok"}"#);
    let decided = |reply: &Reply| decide(&settings(), reply, &v1::ConnectionOpened::default());
    assert_eq!(decided(&reply), Ok(Decision::accept()));
    reply.headers.insert("content-encoding", HeaderValue::from_static("identity"));
    assert_eq!(decided(&reply), Ok(Decision::accept()));
    reply.headers.insert("content-encoding", HeaderValue::from_static("gzip"));
    assert!(matches!(decided(&reply), Err(Failure::Nonsense(_))));
}
