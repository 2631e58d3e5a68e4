//! As Lambda functions get it.

use super::*;

fn settings() -> ApiSettings {
    let routes = ["$connect", "$disconnect", "$default", "sendmessage"];
    ApiSettings {
        stage: "default".into(),
        routes: routes.map(|route| (route.to_owned(), url(route.trim_start_matches('$')))).into(),
        route_selection: Some("$request.body.action".parse().unwrap()),
        ..ApiSettings::new("abc", Dialect::Aws)
    }
}

fn who() -> Identity {
    Identity {
        opened_at: 1_674_162_806_344_000,
        address: "10.0.2.14".into(),
        user_agent: "Amazon CloudFront".into(),
        host: "abc.execute-api.us-east-1.amazonaws.com:443".into(),
        ..Identity::default()
    }
}

fn context(route: &str, kind: &str) -> Value {
    json!({
        "routeKey": route, "eventType": kind, "extendedRequestId": place().short(),
        "requestTime": "19/Jan/2023:21:13:26 +0000", "messageDirection": "IN", "stage": "default",
        "connectedAt": 1_674_162_806_344_u64, "requestTimeEpoch": 1_674_162_806_345_u64,
        "identity": { "sourceIp": "10.0.2.14", "userAgent": "Amazon CloudFront" }, "requestId": place().short(),
        "domainName": "abc.execute-api.us-east-1.amazonaws.com", "connectionId": ID, "apiId": "abc",
    })
}

#[test]
fn connect_is_what_lambda_functions_get() {
    let opened = v1::ConnectionOpened {
        peer: "10.0.2.14:51000".into(),
        query: "k=v&k=w&e".into(),
        headers: vec![
            header("host", "abc.execute-api.us-east-1.amazonaws.com"),
            header("user-agent", "Amazon CloudFront"),
            header("sec-websocket-extensions", "permessage-deflate; client_max_window_bits"),
        ],
        subprotocols: vec!["chat".into(), "v2".into()],
        principal: "ada".into(),
        attributes: [("tenant".to_owned(), "acme".to_owned()), ("principalId".to_owned(), "eve".to_owned())].into(),
        ..Default::default()
    };
    let call = registration(&settings(), &place(), &opened).unwrap();
    assert_eq!(call.url, url("connect"));
    let mut context = context("$connect", "CONNECT");
    context["connectedAt"] = 1_674_162_806_345_u64.into();
    context["authorizer"] = json!({ "principalId": "ada", "tenant": "acme" });
    let headers = json!({
        "Host": "abc.execute-api.us-east-1.amazonaws.com", "User-Agent": "Amazon CloudFront",
        "Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits",
        "Sec-WebSocket-Protocol": "chat, v2", "Sec-WebSocket-Version": "13", "X-Forwarded-For": "10.0.2.14",
        "X-Forwarded-Port": "443", "X-Forwarded-Proto": "https",
        "X-Amzn-Trace-Id": format!("Root=1-63c9b276-{}", &place().uuid().replace('-', "")[8..]),
    });
    let listed = headers.as_object().unwrap().iter().map(|(name, value)| (name.clone(), json!([value])));
    let expected = json!({
        "headers": headers, "multiValueHeaders": listed.collect::<serde_json::Map<_, _>>(),
        "queryStringParameters": { "k": "w", "e": "" },
        "multiValueQueryStringParameters": { "k": ["v", "w"], "e": [""] }, "stageVariables": {},
        "requestContext": context, "isBase64Encoded": false,
    });
    assert_eq!(parsed(&call), expected);
    let bare = parsed(&registration(&settings(), &place(), &v1::ConnectionOpened::default()).unwrap());
    assert!(bare.get("queryStringParameters").is_none(), "{bare}");
}

#[test]
fn what_edges_keep_is_handed_on_and_nobody_says_for_others_who_they_are() {
    let opened = v1::ConnectionOpened {
        peer: "10.0.2.14:51000".into(),
        headers: vec![
            header("host", "chat.example.com:8443"),
            header("authorization", "Bearer x"),
            header("cookie", "a=1"),
            header("cookie", "b=2"),
            header("x-forwarded-for", "1.2.3.4"),
            header("x-forwarded-proto", "http"),
            header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            header("sec-websocket-protocol", "chat"),
        ],
        subprotocols: vec!["chat".into()],
        ..Default::default()
    };
    let event = parsed(&registration(&settings(), &place(), &opened).unwrap());
    for (name, values) in [
        ("Authorization", json!(["Bearer x"])),
        ("Cookie", json!(["a=1", "b=2"])),
        ("X-Forwarded-For", json!(["10.0.2.14"])),
        ("X-Forwarded-Proto", json!(["http"])),
        ("X-Forwarded-Port", json!(["8443"])),
        ("Sec-WebSocket-Key", json!(["dGhlIHNhbXBsZSBub25jZQ=="])),
        ("Sec-WebSocket-Protocol", json!(["chat"])),
    ] {
        assert_eq!(event["multiValueHeaders"][name], values, "{name}");
        assert_eq!(event["headers"][name], values[values.as_array().unwrap().len() - 1], "{name}");
    }
}

#[test]
fn every_event_tells_the_authorizer_s_word_and_the_stage_s_variables() {
    let stage_variables = [("table".to_owned(), "chat-prod".to_owned())].into();
    let settings = ApiSettings { stage_variables, ..settings() };
    let who = Identity { principal: "ada".into(), claims: [("tenant".to_owned(), "acme".to_owned())].into(), ..who() };
    let opened =
        v1::ConnectionOpened { principal: who.principal.clone(), attributes: who.claims.clone(), ..Default::default() };
    for call in [
        registration(&settings, &place(), &opened).unwrap(),
        sent(transmission(&settings, &place(), &who, &Message::from("x"))),
        cleanup(&settings, &place(), &who, &closed(1000, "", CloseCause::Client)).unwrap(),
    ] {
        let event = parsed(&call);
        assert_eq!(event["stageVariables"], json!({ "table": "chat-prod" }), "{event}");
        let authorizer = json!({ "principalId": "ada", "tenant": "acme" });
        assert_eq!(event["requestContext"]["authorizer"], authorizer, "{event}");
    }
}

#[test]
fn messages_go_by_their_route() {
    let message = |text: &str| sent(transmission(&settings(), &place(), &who(), &Message::from(text)));
    let call = message(r#"{"action":"sendmessage"}"#);
    assert_eq!(call.url, url("sendmessage"));
    let mut context = context("sendmessage", "MESSAGE");
    context["messageId"] = place().short().into();
    let expected =
        json!({ "requestContext": context, "body": "{\"action\":\"sendmessage\"}", "isBase64Encoded": false });
    assert_eq!(parsed(&call), expected);
    for other in [r#"{"action":"unknown"}"#, r#"{"action":"$connect"}"#, "no json", "{}"] {
        let call = message(other);
        assert_eq!(
            (call.url.clone(), &parsed(&call)["requestContext"]["routeKey"]),
            (url("default"), &json!("$default"))
        );
    }
    let binary = sent(transmission(&settings(), &place(), &who(), &Message::binary(vec![0, 255, 1])));
    let event = parsed(&binary);
    assert_eq!((&event["body"], &event["isBase64Encoded"]), (&json!("AP8B"), &json!(true)));
}

#[test]
fn a_domain_of_the_configuration_keeps_its_port() {
    let settings = ApiSettings { domain: Some("chat.example.com:8443".into()), ..settings() };
    let event = parsed(&sent(transmission(&settings, &place(), &who(), &Message::from("x"))));
    assert_eq!(event["requestContext"]["domainName"], "chat.example.com:8443");
}

#[test]
fn without_a_route_the_client_is_told() {
    let mut settings = settings();
    settings.routes.remove("$default");
    let Transmission::Answer(answer) = transmission(&settings, &place(), &who(), &Message::from("x")) else {
        panic!("there is no function for it");
    };
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((&answer["message"], &answer["connectionId"]), (&json!("Forbidden"), &json!(ID)));
    settings.routes.clear();
    assert_eq!(registration(&settings, &place(), &v1::ConnectionOpened::default()), None);
    assert_eq!(cleanup(&settings, &place(), &who(), &closed(1000, "", CloseCause::Client)), None);
}

#[test]
fn disconnect_says_status_and_reason() {
    let closed = closed(1001, "Going away", CloseCause::Idle);
    let event = parsed(&cleanup(&settings(), &place(), &who(), &closed).unwrap());
    let mut context = context("$disconnect", "DISCONNECT");
    context["disconnectStatusCode"] = 1001.into();
    context["disconnectReason"] = "Going away".into();
    let headers = json!({ "Host": "abc.execute-api.us-east-1.amazonaws.com", "x-api-key": "",
        "X-Forwarded-For": "10.0.2.14", "x-restapi": "" });
    assert_eq!((&event["requestContext"], &event["headers"]), (&context, &headers));
    assert_eq!(event["multiValueHeaders"]["Host"], json!(["abc.execute-api.us-east-1.amazonaws.com"]));
}

#[test]
fn a_disconnect_without_a_reason_has_the_cloud_s() {
    for (code, given, cause, expected) in [
        (1000, "", CloseCause::Client, "Connection Closed Normally"),
        (1000, "", CloseCause::Handler, "Connection Closed Normally"),
        (1000, "bye", CloseCause::Client, "bye"),
        (1001, "", CloseCause::Client, "Going away"),
        (1001, "idle", CloseCause::Idle, "Going away"),
        (1001, "end of its lifetime", CloseCause::MaxLifetime, "Going away"),
        (1005, "", CloseCause::Client, "Client-side close frame status not set"),
        (1006, "", CloseCause::ClientVanished, ""),
        (4000, "enough", CloseCause::Client, "enough"),
    ] {
        let event = parsed(&cleanup(&settings(), &place(), &who(), &closed(code, given, cause)).unwrap());
        let context = &event["requestContext"];
        let told = (&context["disconnectStatusCode"], &context["disconnectReason"]);
        assert_eq!(told, (&json!(code), &json!(expected)), "{cause:?}");
    }
}

#[test]
fn routes_are_found_whatever_the_client_sends() {
    let routed = |settings: &ApiSettings, text: &str| match transmission(settings, &place(), &who(), &text.into()) {
        Transmission::Call(call) => parsed(&call)["requestContext"]["routeKey"].as_str().unwrap().to_owned(),
        Transmission::Answer(_) => "nobody".to_owned(),
        Transmission::Nothing => panic!("{text} is for nobody"),
    };
    let mut settings = ApiSettings {
        route_selection: Some("${request.body.service}/${request.body.action}".parse().unwrap()),
        routes: ["chat/send", "chat/", "/", "7/true", "$default"].map(|key| (key.to_owned(), url("f"))).into(),
        ..settings()
    };
    let cases = [
        (r#"{"service":"chat","action":"send"}"#, "chat/send"),
        (r#"{"service":"chat"}"#, "chat/"),
        (r#"{"service":"chat","action":null}"#, "chat/"),
        (r#"{"service":7,"action":true}"#, "7/true"),
        ("{}", "/"),
        ("[]", "/"),
    ];
    for (text, route) in cases {
        assert_eq!(routed(&settings, text), route, "{text}");
    }
    let others = [r#"{"service":"chat","action":"fly"}"#, "no json", "", "{", "\u{feff}{}"];
    for text in others {
        assert_eq!(routed(&settings, text), "$default", "{text}");
    }
    settings.routes.remove("$default");
    for (text, route) in cases.into_iter().chain(others.map(|text| (text, "nobody"))) {
        assert_eq!(routed(&settings, text), route, "{text}");
    }
}

#[test]
fn connect_s_answer_decides() {
    let opened = v1::ConnectionOpened { subprotocols: vec!["chat".into()], ..Default::default() };
    let decide = |answer: &str| decide(&settings(), &reply(200, answer.to_owned()), &opened);
    let accepted = |name: Option<&str>| Ok(Decision::Accept { subprotocol: name.map(str::to_owned) });
    assert_eq!(decide(r#"{"statusCode":200}"#), accepted(None));
    assert_eq!(decide(r#"{"statusCode":200,"headers":{"Sec-WebSocket-Protocol":"chat"}}"#), accepted(Some("chat")));
    assert_eq!(decide(r#"{"statusCode":200,"headers":{"sec-websocket-protocol":"other"}}"#), accepted(None));
    for (answer, status, body) in [
        (r#"{"statusCode":401,"body":"no"}"#, 401, "no"),
        (r#"{"statusCode":403}"#, 403, ""),
        (r#"{"statusCode":500,"body":"aGk=","isBase64Encoded":true}"#, 500, "hi"),
        (r#"{"statusCode":302}"#, 403, ""),
    ] {
        assert_eq!(decide(answer), Ok(Decision::Reject { status, body: body.into() }), "{answer}");
    }
    let listed = r#"{"statusCode":"200","multiValueHeaders":{"Sec-WebSocket-Protocol":["chat"]}}"#;
    assert_eq!(decide(listed), accepted(Some("chat")));
    for nonsense in ["", "null", "{}", r#"{"statusCode":"ok"}"#, r#"{"statusCode":70000}"#, "{"] {
        assert!(matches!(decide(nonsense), Err(Failure::Nonsense(_))), "{nonsense}");
    }
    let raised = r#"{"errorMessage":"'x'","errorType":"KeyError","stackTrace":[]}"#;
    assert_eq!(decide(raised), Err(Failure::Raised("'x'".into())));
    let mut by_header = reply(200, "{}");
    by_header.headers.insert("x-amz-function-error", HeaderValue::from_static("Unhandled"));
    assert!(matches!(super::decide(&settings(), &by_header, &opened), Err(Failure::Raised(_))));
}

#[test]
fn an_answer_reaches_the_client_where_there_is_a_route_response() {
    let on = ApiSettings { integration_response: true, ..settings() };
    // what nobody uses cannot be wrong: the function ran
    let too_large = Reply { body: None, ..reply(200, "") };
    assert_eq!((super::response(&settings(), &too_large), super::done(&settings(), &too_large)), (Ok(None), Ok(())));
    assert!(matches!(super::response(&on, &too_large), Err(Failure::TooLarge(_))));
    let response = |settings: &ApiSettings, answer: &str| response(settings, &reply(200, answer.to_owned()));
    for unused in [r#"{"statusCode":200,"body":"hi"}"#, r#"{"statusCode":"200","headers":[]}"#, "{", "[1]"] {
        assert_eq!(response(&settings(), unused), Ok(None), "{unused}");
    }
    let raised = r#"{"errorMessage":"'x'","errorType":"KeyError"}"#;
    assert_eq!(response(&settings(), raised), Err(Failure::Raised("'x'".into())));
    let nulls = r#"{"statusCode":null,"headers":null,"body":"hi","isBase64Encoded":null}"#;
    assert_eq!(response(&on, nulls), Ok(Some("hi".into())));
    assert_eq!(response(&on, r#"{"statusCode":200,"body":"hi"}"#), Ok(Some("hi".into())));
    assert_eq!(response(&on, r#"{"statusCode":500,"body":"sorry"}"#), Ok(Some("sorry".into())));
    assert_eq!(
        response(&on, r#"{"statusCode":200,"body":"AP8B","isBase64Encoded":true}"#),
        Ok(Some(Message::binary(vec![0, 255, 1])))
    );
    for silent in ["", "null", r#"{"statusCode":200}"#, r#"{"statusCode":200,"body":""}"#] {
        assert_eq!(response(&on, silent), Ok(None), "{silent}");
    }
}
