//! Hostile tokens, and good ones (attack rows A25 to A28): each with its answer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use ring::{
    hmac::{HMAC_SHA256, sign},
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _},
};
use trunkline_proto::{token::TokenDigest, v1};

use super::*;
use crate::config::Algorithm;

const NOW: u64 = 1_700_000_000;
const SECRET: &[u8] = b"a secret of at least thirty-two bytes";

/// Made with `openssl genrsa 2048`; the private key is not kept.
const RSA_PUBLIC: &str = "\
-----BEGIN PUBLIC KEY-----\n\
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA0jvgYUHu9i2LJoD62m/U\n\
D6KeJjlxUjNOLWtgz7YYnkls60PvBX1X1WncBs5Ba+gHeQ+I4x2dyCKs9cf7Dybr\n\
PgbGay7z7U9cXqxdktddt0kabGKnnECATNj9iQT8UidZxki16arLKt/XRuLSQC8w\n\
Orzbt57BAljfCfJM8EOXEu8G3jtUbbSFP+2WZHqeh1MvKUL2Tauy85O4ihQCFwDo\n\
rfmLX3XyGp8j0lr4NoOrnlxRudF+/tB4vnYikb1fdJQqWkPGnZDqhr7G5Df1ByEp\n\
B5DCZ8GnvtsA1hprxydOU9lir7a1TQ8Xsf4VL75EBfEWvUGYBJA43yHUVgjFB4Ee\n\
iwIDAQAB\n\
-----END PUBLIC KEY-----\n";
/// Its modulus.
const RSA_N: &str = "0jvgYUHu9i2LJoD62m_UD6KeJjlxUjNOLWtgz7YYnkls60PvBX1X1WncBs5Ba-gHeQ-I4x2dyCKs9cf7DybrPgbGay7z7U9cXqxdktddt0kabG\
     KnnECATNj9iQT8UidZxki16arLKt_XRuLSQC8wOrzbt57BAljfCfJM8EOXEu8G3jtUbbSFP-2WZHqeh1MvKUL2Tauy85O4ihQCFwDorfmLX3Xy\
     Gp8j0lr4NoOrnlxRudF-_tB4vnYikb1fdJQqWkPGnZDqhr7G5Df1ByEpB5DCZ8GnvtsA1hprxydOU9lir7a1TQ8Xsf4VL75EBfEWvUGYBJA43y\
     HUVgjFB4Eeiw";
/// `{"alg":"RS256","kid":"r1","typ":"JWT"}`, `{"sub":"ada","exp":4102444800}`, signed with it.
const RSA_TOKEN: &str = "eyJhbGciOiJSUzI1NiIsImtpZCI6InIxIiwidHlwIjoiSldUIn0.eyJzdWIiOiJhZGEiLCJleHAiOjQxMDI0NDQ4MDB9.aryrmRED9aqs3iviM\
     mj0g6-8yPg18Wwqy99K-No1HGtMubYOfbWCbHbTGc32yh5_qxPeton2_Sm9afYkTGJx9XoCsEkzwN6w6OK8IFt6LJO2d1mbdZKfFg-kw1k3uIL\
     cU-1L99c7KDn4COtPfj-2Bm7wDKX8Mn44lyhdll1pSD0wj6p-U3I91Gr6E2sFaaUv3OgomI3hc0Rwjcm-RZXzA4h10dZYpZ4IyO0vc4TGWdRlm\
     JVluv2CwK4EqW-wXy5XnoseMBCERXZdmE__NMmUT_DrkQVj9Z6K3qmXQQgoI5GaqD0UK2hFSrMhfkBpPLtDK8pUSDj4qq-Xd3gbfE3QQg";

fn encoded(part: &str) -> String {
    URL_SAFE_NO_PAD.encode(part)
}

fn signed(header: &str, claims: &str, secret: &[u8]) -> String {
    let text = format!("{}.{}", encoded(header), encoded(claims));
    let signature = sign(&ring::hmac::Key::new(HMAC_SHA256, secret), text.as_bytes());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
}

/// A token with these claims, by our secret.
fn token(claims: &str) -> String {
    signed(r#"{"alg":"HS256"}"#, claims, SECRET)
}

fn rules() -> JwtRules {
    JwtRules {
        algorithms: vec![Algorithm::Hs256, Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa],
        issuer: None,
        audience: Vec::new(),
        required: vec!["exp".to_owned()],
        leeway: 10,
        principal: "sub".to_owned(),
        attributes: Vec::new(),
    }
}

fn places() -> Places {
    Places { query: "access_token".to_owned(), subprotocol: "bearer".to_owned() }
}

fn with_rules(rules: JwtRules) -> Jwt {
    let keys = vec![
        Key::secret(None, SECRET).unwrap(),
        Key::public(Some("r1".to_owned()), Algorithm::Rs256, RSA_PUBLIC.as_bytes()).unwrap(),
    ];
    Jwt::new(places(), rules, keys)
}

fn verified(token: &str) -> Result<String, Denied> {
    with_rules(rules()).verify(token, NOW).map(|identity| identity.principal)
}

fn pem(info: &[u8]) -> String {
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(info))
}

#[test]
fn good_tokens_of_every_algorithm() {
    let ada = Ok("ada".to_owned());
    assert_eq!(verified(&token(r#"{"sub":"ada","exp":1700000001}"#)), ada);
    assert_eq!(verified(RSA_TOKEN), ada);
    let set = format!(
        r#"{{"keys":[{{"kty":"RSA","alg":"RS512","n":"x","e":"AQAB"}},{{"kty":"new"}},
            {{"kty":"RSA","use":"sig","kid":"r1","n":"{RSA_N}","e":"AQAB"}}]}}"#
    );
    let keys = Key::set(&[Algorithm::Rs256], set.as_bytes()).unwrap();
    assert_eq!(keys.len(), 1, "others are left out");
    assert!(Jwt::new(places(), rules(), keys).verify(RSA_TOKEN, NOW).is_ok());

    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let ec = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap();
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
    let ed = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
    let claims = encoded(r#"{"sub":"ada","exp":1800000000}"#);
    let info = |prefix: &str, key: &[u8]| {
        let digits: Vec<u8> = prefix.bytes().collect();
        let prefix = digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap());
        pem(&prefix.chain(key.iter().copied()).collect::<Vec<_>>())
    };
    let ec_pem = info("3059301306072a8648ce3d020106082a8648ce3d030107034200", ec.public_key().as_ref());
    let ed_pem = info("302a300506032b6570032100", ed.public_key().as_ref());
    let text = format!("{}.{claims}", encoded(r#"{"alg":"ES256"}"#));
    let by_ec = format!("{text}.{}", URL_SAFE_NO_PAD.encode(ec.sign(&random, text.as_bytes()).unwrap().as_ref()));
    let text = format!("{}.{claims}", encoded(r#"{"alg":"EdDSA"}"#));
    let by_ed = format!("{text}.{}", URL_SAFE_NO_PAD.encode(ed.sign(text.as_bytes()).as_ref()));
    let keys = vec![
        Key::public(None, Algorithm::Es256, ec_pem.as_bytes()).unwrap(),
        Key::public(None, Algorithm::EdDsa, ed_pem.as_bytes()).unwrap(),
    ];
    let jwt = Jwt::new(places(), rules(), keys);
    for good in [&by_ec, &by_ed] {
        assert_eq!(jwt.verify(good, NOW).unwrap().principal, "ada");
        let mut cut = good.clone();
        cut.pop();
        assert!(jwt.verify(&cut, NOW).is_err());
    }
    assert_eq!(Key::public(None, Algorithm::Rs256, ed_pem.as_bytes()).unwrap_err(), KeyError::Unfit(Algorithm::Rs256));
    assert_eq!(Key::public(None, Algorithm::Es256, ed_pem.as_bytes()).unwrap_err(), KeyError::Unfit(Algorithm::Es256));
}

#[test]
fn a25_what_the_header_says_opens_nothing() {
    let claims = r#"{"sub":"ada","exp":1800000000}"#;
    for alg in ["none", "None", "nOnE", "", "hs256", "HS512", "RS256 "] {
        let header = format!(r#"{{"alg":"{alg}"}}"#);
        let unsigned = format!("{}.{}.", encoded(&header), encoded(claims));
        assert_eq!(verified(&unsigned), Err(Denied::Algorithm), "{alg}");
        assert_eq!(verified(&signed(&header, claims, SECRET)), Err(Denied::Algorithm), "{alg}");
    }
    let good = token(claims);
    let (text, _) = good.rsplit_once('.').unwrap();
    assert_eq!(verified(&format!("{text}.")), Err(Denied::Signature), "an empty signature");
    // the public key, known to all, as the secret
    for secret in [RSA_PUBLIC, RSA_PUBLIC.trim_end()] {
        let header = r#"{"alg":"HS256","kid":"r1"}"#;
        assert_eq!(verified(&signed(header, claims, secret.as_bytes())), Err(Denied::Signature));
    }
    assert_eq!(Key::secret(None, RSA_PUBLIC.as_bytes()).unwrap_err(), KeyError::NoSecret);
    let mut only_rsa = rules();
    only_rsa.algorithms = vec![Algorithm::Rs256];
    assert_eq!(with_rules(only_rsa).verify(&good, NOW), Err(Denied::Algorithm), "not in the configuration");
    let own = b"a key the attacker has made for himself, and sends along";
    for extra in [
        format!(r#""jwk":{{"kty":"oct","k":"{}"}}"#, URL_SAFE_NO_PAD.encode(own)),
        r#""jku":"http://127.0.0.1:1/jwks""#.to_owned(),
        r#""x5u":"http://169.254.169.254/""#.to_owned(),
        r#""kid":"../../dev/null""#.to_owned(),
        r#""kid":"' OR 1=1""#.to_owned(),
    ] {
        let header = format!(r#"{{"alg":"HS256",{extra}}}"#);
        assert_eq!(verified(&signed(&header, claims, own)), Err(Denied::Signature), "{extra}");
    }
    for (header, expected) in [
        (r#"{"alg":"HS256","crit":["exp"]}"#, Denied::Malformed),
        (r#"{"alg":"HS256","alg":"none"}"#, Denied::Malformed),
        (r#"{"alg":["HS256"]}"#, Denied::Malformed),
        (r#"{"alg":"HS256","kid":1}"#, Denied::Malformed),
        (r#"{}"#, Denied::Malformed),
        (r#"[]"#, Denied::Malformed),
    ] {
        assert_eq!(verified(&signed(header, claims, SECRET)), Err(expected), "{header}");
    }
}

#[test]
fn a26_claims_of_the_wrong_kind_are_wrong() {
    for (claims, expected) in [
        (r#"{"sub":"ada","exp":1700000000}"#, None),
        (r#"{"sub":"ada","exp":1699999991}"#, None),
        (r#"{"sub":"ada","exp":1699999990}"#, Some(Denied::Expired)),
        (r#"{"sub":"ada","exp":0}"#, Some(Denied::Expired)),
        (r#"{"sub":"ada"}"#, Some(Denied::Claim)),
        (r#"{"sub":"ada","exp":null}"#, Some(Denied::Claim)),
        (r#"{"sub":"ada","exp":"1800000000"}"#, Some(Denied::Malformed)),
        (r#"{"sub":"ada","exp":1800000000.5}"#, Some(Denied::Malformed)),
        (r#"{"sub":"ada","exp":1e300}"#, Some(Denied::Malformed)),
        (r#"{"sub":"ada","exp":1e999}"#, Some(Denied::Malformed)),
        (r#"{"sub":"ada","exp":-1}"#, Some(Denied::Malformed)),
        (r#"{"sub":"ada","exp":18446744073709551615}"#, Some(Denied::Malformed)),
        (r#"{"sub":"ada","exp":[1800000000]}"#, Some(Denied::Malformed)),
        (r#"{"sub":"ada","exp":true}"#, Some(Denied::Malformed)),
        (r#"{"sub":"ada","exp":1800000000,"nbf":1700000010}"#, None),
        (r#"{"sub":"ada","exp":1800000000,"nbf":1700000011}"#, Some(Denied::NotYet)),
        (r#"{"sub":"ada","exp":1800000000,"nbf":"0"}"#, Some(Denied::Malformed)),
        (r#"{"sub":"ada","exp":1800000000,"iat":"now"}"#, Some(Denied::Malformed)),
        (r#"{"sub":"ada","exp":1800000000,"aud":"others"}"#, Some(Denied::Audience)),
        (r#"{"sub":["ada"],"exp":1800000000}"#, Some(Denied::Malformed)),
        (r#"{"sub":"","exp":1800000000}"#, Some(Denied::Malformed)),
        (r#"{"sub":"a\u001b[2J","exp":1800000000}"#, Some(Denied::Malformed)),
        (r#"{"exp":1800000000}"#, Some(Denied::Claim)),
    ] {
        assert_eq!(verified(&token(claims)).err(), expected, "{claims}");
    }
    let strict = with_rules(JwtRules {
        issuer: Some("https://id.example".to_owned()),
        audience: vec!["chat".to_owned(), "news".to_owned()],
        ..rules()
    });
    for (claims, expected) in [
        (r#""iss":"https://id.example","aud":"chat""#, None),
        (r#""iss":"https://id.example","aud":["other","news"]"#, None),
        (r#""iss":"https://id.example","aud":["other"]"#, Some(Denied::Audience)),
        (r#""iss":"https://id.example","aud":[]"#, Some(Denied::Audience)),
        (r#""iss":"https://id.example","aud":["chat",1]"#, Some(Denied::Malformed)),
        (r#""iss":"https://id.example","aud":{"chat":1}"#, Some(Denied::Malformed)),
        (r#""iss":"https://id.example""#, Some(Denied::Audience)),
        (r#""iss":"https://id.example/","aud":"chat""#, Some(Denied::Issuer)),
        (r#""iss":["https://id.example"],"aud":"chat""#, Some(Denied::Malformed)),
        (r#""aud":"chat""#, Some(Denied::Issuer)),
    ] {
        let token = token(&format!(r#"{{"sub":"ada","exp":1800000000,{claims}}}"#));
        assert_eq!(strict.verify(&token, NOW).err(), expected, "{claims}");
    }
}

#[test]
fn a27_a_key_id_picks_among_configured_keys_only() {
    // two issuers may use the same kid: each API has keys of its own, and the issuer is checked
    let one = |secret: &[u8], issuer: &str| {
        let rules = JwtRules { issuer: Some(issuer.to_owned()), ..rules() };
        Jwt::new(places(), rules, vec![Key::secret(Some("k".to_owned()), secret).unwrap()])
    };
    let other: &[u8] = b"the other issuer's secret, as long as ours";
    let (ours, theirs) = (one(SECRET, "a"), one(other, "b"));
    let of = |issuer: &str, secret| {
        let claims = format!(r#"{{"sub":"ada","exp":1800000000,"iss":"{issuer}"}}"#);
        signed(r#"{"alg":"HS256","kid":"k"}"#, &claims, secret)
    };
    assert!(ours.verify(&of("a", SECRET), NOW).is_ok());
    assert!(theirs.verify(&of("b", other), NOW).is_ok());
    assert_eq!(ours.verify(&of("a", other), NOW), Err(Denied::Signature));
    assert_eq!(ours.verify(&of("b", SECRET), NOW), Err(Denied::Issuer));
    let other_kid = signed(r#"{"alg":"HS256","kid":"l"}"#, r#"{"sub":"ada","exp":1800000000,"iss":"a"}"#, SECRET);
    assert_eq!(ours.verify(&other_kid, NOW), Err(Denied::Signature));
}

#[test]
#[allow(clippy::disallowed_methods)] // the test's own clock: how long refusals take
fn a28_what_is_huge_deep_or_twofold_is_refused_at_once() {
    let deep = format!(r#"{{"sub":"ada","exp":1800000000,"x":{}1{}}}"#, "[".repeat(2500), "]".repeat(2500));
    let deep_header = format!(r#"{{"alg":"HS256","x":{}1{}}}"#, "[".repeat(2500), "]".repeat(2500));
    let long = format!(r#"{{"sub":"{}","exp":1800000000}}"#, "a".repeat(2000));
    let begun = Instant::now();
    for hostile in [
        "x".repeat(1 << 20),
        token(&"[".repeat(10_000)),
        token(&deep),
        signed(&deep_header, "{}", SECRET),
        token(&long),
        token(r#"{"sub":"ada","sub":"bob","exp":1800000000}"#),
        token(r#"{"sub":"ada","exp":1,"exp":1800000000}"#),
        token("not json"),
        token(""),
        "..".to_owned(),
        ".".repeat(8000),
        "a.b".to_owned(),
        "a.b.c.d".to_owned(),
        format!("{}=", token(r#"{"sub":"ada","exp":1800000000}"#)),
        "\u{0}\u{1f}\u{7f}".to_owned(),
    ] {
        assert!(verified(&hostile).is_err(), "{}", &hostile[..hostile.len().min(100)]);
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?} for fifteen", begun.elapsed());
}

#[test]
fn claims_become_principal_attributes_and_an_end() {
    let attributes = ["role", "age", "tags", "none"].map(str::to_owned).to_vec();
    let jwt = with_rules(JwtRules { principal: "email".to_owned(), attributes, ..rules() });
    let token = token(r#"{"email":"a@b","exp":1800000000,"role":"admin","age":7,"tags":["x"],"none":null,"other":1}"#);
    let identity = jwt.verify(&token, NOW).unwrap();
    let expected = [("age", "7"), ("role", "admin"), ("tags", r#"["x"]"#)];
    let expected = expected.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let proof = identity.proof;
    assert!(proof.is_some());
    assert_eq!(
        identity,
        Identity { principal: "a@b".to_owned(), attributes: expected, expires: Some(1_800_000_010), proof }
    );
}

fn request(query: &str, authorization: Option<&str>, subprotocols: &[&str]) -> Upgrade {
    let header = |name: &str| v1::Header { name: name.to_owned(), value: "a SECRET".to_owned() };
    Upgrade {
        path: "/chat".to_owned(),
        query: query.to_owned(),
        origin: None,
        accept: String::new(),
        subprotocols: subprotocols.iter().map(|name| (*name).to_owned()).collect(),
        headers: vec![header("authorization"), header("sec-websocket-protocol"), header("cookie")],
        forwarded: Vec::new(),
        authorization: authorization.map(|value| Hidden(value.to_owned())),
    }
}

#[test]
fn a29_nothing_of_the_token_stays_in_the_request() {
    let digest = TokenDigest::of("SECRET");
    let auth = Auth::Token(Box::new(Tokens::new(
        places(),
        vec![Token { digest, principal: "ada".to_owned(), attributes: BTreeMap::new() }],
    )));
    let cases: &[(Upgrade, Option<Denied>)] = &[
        (request("", Some("Bearer SECRET"), &[]), None),
        (request("", Some("bEARER  SECRET"), &[]), None),
        (request("access_token=SECRET", None, &[]), None),
        (request("a=1&access%5Ftoken=SE%43RET&b=2", None, &[]), None),
        (request("", None, &["chat", "bearer", "SECRET"]), None),
        (request("a=1", None, &["chat"]), Some(Denied::Missing)),
        (request("", Some("Basic SECRET"), &[]), Some(Denied::Malformed)),
        (request("", Some("SECRET"), &[]), Some(Denied::Malformed)),
        (request("", None, &["bearer"]), Some(Denied::Malformed)),
        (request("access_token=", None, &[]), Some(Denied::Malformed)),
        (request("access_token=SECRETx", None, &[]), Some(Denied::Unknown)),
        (request("access_token=SECRET&access_token=SECRET", None, &[]), Some(Denied::Twice)),
        (request("access_token=SECRET", Some("Bearer SECRET"), &[]), Some(Denied::Twice)),
        (request("access_token=SECRET", None, &["bearer", "SECRET"]), Some(Denied::Twice)),
    ];
    for (request, expected) in cases {
        let mut request = request.clone();
        let query = request.query.clone();
        let judged = auth.authenticate(&mut request, NOW);
        assert_eq!(judged.as_ref().err(), expected.as_ref(), "{query}");
        let left = format!("{request:?} {judged:?}");
        assert!(!left.contains("SECRET") && !left.contains("SE%43RET"), "{left}");
        if query.starts_with("a=1&") {
            assert_eq!(request.query, "a=1&b=2");
        }
        if let Some(denied) = expected {
            let answer = auth.answer(*denied, 1).to_bytes();
            let answer = std::str::from_utf8(&answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 401 Unauthorized\r\n"), "{answer}");
            assert!(answer.contains("WWW-Authenticate: Bearer") && !answer.contains("SECRET"), "{answer}");
        }
    }
    let offered = ["chat".to_owned(), "bearer".to_owned()];
    assert_eq!(auth.marker(&offered), Some(&offered[1]));
    assert!(!format!("{:?}", request("", Some("SECRET"), &[]).authorization).contains("SECRET"));
}

fn hmac_auth() -> Auth {
    Auth::Hmac(Box::new(Hmac {
        keys: vec![HmacKey::new("k1".to_owned(), SECRET), HmacKey::new("k2".to_owned(), &[7; 32])],
        max_age: 60,
        principal: Some("user".to_owned()),
        attributes: vec!["room".to_owned()],
    }))
}

fn hmac_signature(path: &str, query: &str, timestamp: u64, secret: &[u8]) -> String {
    let text = format!("trunkline-hmac-sha256\n{path}\n{query}\n{timestamp}");
    let tag = sign(&ring::hmac::Key::new(HMAC_SHA256, secret), text.as_bytes());
    tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn signed_requests_say_who_and_when() {
    let auth = hmac_auth();
    let query = |rest: &str, timestamp: u64| format!("{rest}&hmac_key=k1&hmac_timestamp={timestamp}");
    let full = |query: &str, timestamp| {
        format!("{query}&hmac_signature={}", hmac_signature("/chat", query, timestamp, SECRET))
    };
    let judge = |query: &str, authorization: Option<&str>| {
        let mut request = request(query, authorization, &[]);
        let judged = auth.authenticate(&mut request, NOW);
        assert!(!request.query.contains("signature") && request.authorization.is_none());
        judged
    };
    let good = full(&query("user=ada&room=42", NOW), NOW);
    let identity = judge(&good, None).unwrap();
    assert_eq!((identity.principal.as_str(), identity.attributes["room"].as_str()), ("ada", "42"));
    assert_eq!(auth.proofs().len(), 2);
    assert!(auth.proofs().contains(&identity.proof.unwrap()));
    for (changed, expected) in [
        (good.replace("ada", "bob"), Denied::Signature),
        (good.replace("k1", "k2"), Denied::Signature),
        (good.replace("k1", "k3"), Denied::Signature),
        (good.replace(&NOW.to_string(), &(NOW + 1).to_string()), Denied::Signature),
        (good.replace(&NOW.to_string(), &format!("0{NOW}")), Denied::Malformed),
        (good.replace(&NOW.to_string(), "1e9"), Denied::Malformed),
        (good[..good.len() - 1].to_owned(), Denied::Malformed),
        (good[..good.len() - 2].to_owned(), Denied::Signature),
        (good[..good.len() - 64].to_owned(), Denied::Signature),
        (format!("{good}&user=bob"), Denied::Malformed),
        (format!("hmac_signature=00&{good}"), Denied::Twice),
        (full(&query("user=ada&user=bob", NOW), NOW), Denied::Twice),
        (full(&query("room=42", NOW), NOW), Denied::Claim),
        (full(&query("user=ada", NOW - 61), NOW - 61), Denied::Expired),
        (full(&query("user=ada", NOW + 61), NOW + 61), Denied::NotYet),
        ("user=ada".to_owned(), Denied::Missing),
    ] {
        assert_eq!(judge(&changed, None), Err(expected), "{changed}");
    }
    let header = |signature: &str| format!("TRUNKLINE-HMAC-SHA256 key=k1, timestamp={NOW}, signature={signature}");
    let signature = hmac_signature("/chat", "user=ada", NOW, SECRET);
    assert!(judge("user=ada", Some(&header(&signature))).is_ok());
    assert_eq!(judge("user=bob", Some(&header(&signature))), Err(Denied::Signature));
    assert_eq!(judge("user=ada", Some(&header(&signature.to_uppercase()))), Err(Denied::Malformed));
    assert_eq!(judge("user=ada", Some(&format!("{}, key=k2", header(&signature)))), Err(Denied::Malformed));
    assert_eq!(judge(&good, Some(&header(&signature))), Err(Denied::Twice));
    assert_eq!(judge("user=ada", Some("Bearer x")), Err(Denied::Malformed));
}

#[test]
fn what_lets_somebody_in_is_told_apart_from_everything_else() {
    let entry = |token: &str, principal: &str, role: &str| Token {
        digest: TokenDigest::of(token),
        principal: principal.to_owned(),
        attributes: [("role".to_owned(), role.to_owned())].into(),
    };
    let entries = [("a", "ada", "x"), ("b", "ada", "x"), ("a", "adaa", "x"), ("a", "ada", "y")];
    let tokens = Tokens::new(places(), entries.map(|(token, principal, role)| entry(token, principal, role)).to_vec());
    assert_eq!(Auth::Token(Box::new(tokens)).proofs().len(), entries.len());

    let set = |text: &str| Key::set(&[Algorithm::Hs256, Algorithm::EdDsa], text.as_bytes()).unwrap();
    let k = URL_SAFE_NO_PAD.encode([7; 32]);
    let keys = set(&format!(
        r#"{{"keys":[{{"kty":"oct","k":"{k}"}},{{"kty":"oct","k":"{k}","kid":""}},{{"kty":"oct","k":"{k}","kid":"a"}},
           {{"kty":"OKP","crv":"Ed25519","x":"{k}","kid":"a"}},{{"kty":"oct","k":"{k}","kid":"a","use":"sig"}}]}}"#
    ));
    let jwt = |keys: Vec<Key>| Auth::Jwt(Box::new(Jwt::new(places(), rules(), keys)));
    assert_eq!(jwt(keys).proofs().len(), 4, "the last is the third again");
    let same = Key::secret(Some("a".to_owned()), &[7; 32]).unwrap();
    let auth = jwt(vec![same, Key::secret(Some("b".to_owned()), &[8; 32]).unwrap()]);
    let token = signed(r#"{"alg":"HS256","kid":"b"}"#, r#"{"sub":"ada","exp":1800000000}"#, &[8; 32]);
    let identity = auth.authenticate(&mut request(&format!("access_token={token}"), None, &[]), NOW).unwrap();
    let proof = identity.proof.unwrap();
    assert!(auth.proofs().contains(&proof) && !jwt(vec![]).proofs().contains(&proof));
    assert_eq!(format!("{proof:?}"), "(hidden)");
}

#[test]
fn a_broken_set_is_told_without_its_keys() {
    for broken in [r#"{"keys":"HUSH"}"#, r#"{"keys":[{"kty":"oct","k":["HUSH"]}]}"#, "HUSH", r#"{"keys":[{"HUSH":1}]}"#]
    {
        let problem = Key::set(&[Algorithm::Hs256], broken.as_bytes()).unwrap_err().to_string();
        assert!(problem.contains("at line 1, column") && !problem.contains("HUSH"), "{problem}");
    }
}

#[test]
fn fetched_keys_count_for_their_time_and_their_want_is_not_the_clients_fault() {
    let rules = JwtRules { algorithms: vec![Algorithm::Hs256], ..rules() };
    let own = Key::secret(Some("own".to_owned()), SECRET).unwrap();
    let jwt = |fetched| Auth::Jwt(Box::new(Jwt::new(places(), rules.clone(), vec![own.clone()]).with_fetched(fetched)));
    let judge = |auth: &Auth, token: &str, now| {
        auth.authenticate(&mut request(&format!("access_token={token}"), None, &[]), now).map(|_| ())
    };
    let of =
        |kid: &str, secret| signed(&format!(r#"{{"alg":"HS256"{kid}}}"#), r#"{"sub":"ada","exp":1800000000}"#, secret);
    let (ours, theirs) = (of(r#","kid":"own""#, SECRET), of(r#","kid":"k""#, &[7; 32]));
    let (unnamed, unknown) = (of("", &[9; 32]), of(r#","kid":"l""#, &[9; 32]));

    let waiting = jwt(Fetched::default());
    assert_eq!(judge(&waiting, &ours, NOW), Ok(()));
    assert_eq!(judge(&waiting, "x.y.z", NOW), Err(Denied::Malformed));
    for token in [&theirs, &unnamed, &unknown] {
        assert_eq!(judge(&waiting, token, NOW), Err(Denied::NoKeys));
    }
    let answer = waiting.answer(Denied::NoKeys, 3).to_bytes();
    let answer = std::str::from_utf8(&answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\r\nRetry-After: 3\r\n"), "{answer}");

    let keys: Arc<[Key]> = [Key::secret(Some("k".to_owned()), &[7; 32]).unwrap()].into();
    let auth = jwt(Fetched::new(keys, NOW + 10));
    assert_eq!([judge(&auth, &ours, NOW), judge(&auth, &theirs, NOW + 9)], [Ok(()), Ok(())]);
    assert_eq!(judge(&auth, &unnamed, NOW), Err(Denied::Signature), "no reason to fetch anything");
    assert_eq!(judge(&auth, &unknown, NOW), Err(Denied::UnknownKey));
    assert_eq!(judge(&auth, &of(r#","kid":"k""#, &[9; 32]), NOW), Err(Denied::Signature));
    assert_eq!(Denied::UnknownKey.to_string(), Denied::Signature.to_string(), "nobody is told which keys there are");
    // too old to let anybody in; and yet no reason to close what they have let in
    assert_eq!([judge(&auth, &ours, NOW + 10), judge(&auth, &theirs, NOW + 10)], [Ok(()), Err(Denied::NoKeys)]);
    assert_eq!(auth.proofs().len(), 2);
}
