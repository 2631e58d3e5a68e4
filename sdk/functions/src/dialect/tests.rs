//! The documented JSON of each dialect, both ways. What stands here in full was read off the clouds' documents: users' functions
//! were written against it.

use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::{Value, json};
use trunkline_proto::v1::CloseCause;
use trunkline_sdk::CloseCode;

use super::*;
use crate::{FunctionUrl, Secret};

const ID: &str = "xawexasdfewezdfsdfeasd";

fn url(path: &str) -> FunctionUrl {
    format!("http://127.0.0.1:9000/{path}").parse().unwrap()
}

fn place() -> Place {
    Place { connection: ID.into(), key: "chat/0/5.0".into(), attempt: 1, time: 1_674_162_806_345_000 }
}

fn header(name: &str, value: &str) -> v1::Header {
    v1::Header { name: name.into(), value: value.into() }
}

fn reply(status: u16, body: impl Into<Bytes>) -> Reply {
    Reply { status: StatusCode::from_u16(status).unwrap(), headers: HeaderMap::new(), body: Some(body.into()) }
}

fn text(call: &Call) -> &str {
    std::str::from_utf8(&call.body).unwrap()
}

fn parsed(call: &Call) -> Value {
    serde_json::from_slice(&call.body).unwrap()
}

fn sent(transmission: Transmission) -> Call {
    match transmission {
        Transmission::Call(call) => call,
        other => panic!("{other:?}"),
    }
}

fn closed(code: u16, reason: &str, cause: CloseCause) -> Closed {
    Closed { code: CloseCode(code), reason: reason.into(), cause }
}

mod scf {
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
        let call =
            sent(transmission(&settings(), &place(), &Identity::default(), &Message::from("say \"hi\" \u{1f600}")));
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
        for wrong in
            [r#"{"websocket":{"dataType":"binary","data":"!"}}"#, r#"{"websocket":{"dataType":"x","data":""}}"#]
        {
            assert!(matches!(response(&on, &reply(200, wrong)), Err(Failure::Nonsense(_))), "{wrong}");
        }
    }
}

mod aws {
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
        let who =
            Identity { principal: "ada".into(), claims: [("tenant".to_owned(), "acme".to_owned())].into(), ..who() };
        let opened = v1::ConnectionOpened {
            principal: who.principal.clone(),
            attributes: who.claims.clone(),
            ..Default::default()
        };
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
        assert_eq!(
            (super::response(&settings(), &too_large), super::done(&settings(), &too_large)),
            (Ok(None), Ok(()))
        );
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
}

mod cloudevents {
    use super::*;

    fn settings() -> ApiSettings {
        ApiSettings {
            registration: Some(url("connect")),
            transmission: Some(url("message")),
            cleanup: Some(url("disconnected")),
            secrets: vec![Secret::new(&trunkline_proto::secret::SecretText::new("0123456789abcdef")).unwrap()],
            ..ApiSettings::new("chat", Dialect::CloudEvents)
        }
    }

    fn headers(call: &Call) -> std::collections::BTreeMap<&str, &str> {
        call.headers.iter().map(|(name, value)| (*name, value.as_str())).collect()
    }

    #[test]
    fn connect_is_the_documented_one() {
        let opened = v1::ConnectionOpened {
            query: "a=1".into(),
            headers: vec![header("host", "h")],
            subprotocols: vec!["v1".into()],
            principal: "ada".into(),
            ..Default::default()
        };
        let call = registration(&settings(), &place(), &opened).unwrap();
        let expected = json!({ "claims": {}, "query": { "a": ["1"] }, "headers": { "host": ["h"] },
            "subprotocols": ["v1"], "clientCertificates": [] });
        assert_eq!(parsed(&call), expected);
        let headers = headers(&call);
        for (name, value) in [
            ("ce-specversion", "1.0"),
            ("ce-type", "azure.webpubsub.sys.connect"),
            ("ce-source", "/hubs/chat/client/xawexasdfewezdfsdfeasd"),
            ("ce-time", "2023-01-19T21:13:26.345Z"),
            ("ce-hub", "chat"),
            ("ce-connectionid", ID),
            ("ce-eventname", "connect"),
            ("ce-userid", "ada"),
        ] {
            assert_eq!(headers[name], value, "{name}");
        }
        let signature = headers["ce-signature"].strip_prefix("sha256=").unwrap();
        assert_eq!((signature.len(), settings().secrets[0].hex(ID) == signature), (64, true));
    }

    #[test]
    fn messages_are_their_own_bodies() {
        let send = |message: Message| sent(transmission(&settings(), &place(), &Identity::default(), &message));
        let text = send("hi".into());
        assert_eq!((&text.body[..], text.content_type), (&b"hi"[..], "text/plain; charset=utf-8"));
        assert_eq!(headers(&text)["ce-type"], "azure.webpubsub.user.message");
        let binary = send(Message::binary(vec![0, 255]));
        assert_eq!((&binary.body[..], binary.content_type), (&[0, 255][..], "application/octet-stream"));
        let gone =
            cleanup(&settings(), &place(), &Identity::default(), &closed(1000, "bye", CloseCause::Client)).unwrap();
        assert_eq!(
            (parsed(&gone), headers(&gone)["ce-type"]),
            (json!({ "reason": "bye" }), "azure.webpubsub.sys.disconnected")
        );
    }

    #[test]
    fn answers() {
        let opened = v1::ConnectionOpened { subprotocols: vec!["v1".into()], ..Default::default() };
        let decide = |status: u16, body: &'static str| decide(&settings(), &reply(status, body), &opened);
        assert_eq!(decide(204, ""), Ok(Decision::accept()));
        let chosen = Decision::Accept { subprotocol: Some("v1".into()) };
        assert_eq!(decide(200, r#"{"groups":[],"userId":"","subprotocol":"v1"}"#), Ok(chosen));
        assert_eq!(decide(401, "no"), Ok(Decision::Reject { status: 401, body: "no".into() }));
        assert!(matches!(decide(503, ""), Err(Failure::Status { .. })));
        assert!(matches!(decide(429, ""), Err(Failure::Status { .. })));
        let on = ApiSettings { integration_response: true, ..settings() };
        assert_eq!(response(&on, &reply(204, "")), Ok(None));
        assert_eq!(response(&on, &reply(200, "hi")), Ok(Some("hi".into())));
        let mut bytes = reply(200, "hi");
        bytes.headers.insert("content-type", HeaderValue::from_static("application/octet-stream"));
        assert_eq!(response(&on, &bytes), Ok(Some(Message::binary("hi"))));
    }
}

/// Whatever a function answers and whatever a client sends: an answer, or a failure.
mod anything {
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
}
