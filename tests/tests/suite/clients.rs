//! Clients as others write them: nothing of ours but a base URL, a key and the CA.

use std::process::Command;

use stage0_tests::Stack;

/// The standard library's client, with the strict verification that Python 3.13 made its default.
const PYTHON: &str = r#"
import json, ssl, sys, urllib.error, urllib.request
url, ca, key = sys.argv[1:]
trust = ssl.create_default_context(cafile=ca)
trust.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
def post(path, body, key=key):
    request = urllib.request.Request(url + path, data=json.dumps(body).encode(), method="POST",
        headers={"Content-Type": "application/json", "X-API-KEY": key, "Accept": "text/plain"})
    try:
        with urllib.request.urlopen(request, context=trust, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
status, answer = post("//check", {"goal": "幫我想一下", "success_criteria": ["有結果"], "context": {}, "pro": False})
assert (status, answer["verdict"], answer["decision"]) == (200, "DEFER", "DEFER"), answer
assert answer["clarifying_questions"] == answer["defer_questions"] != []
status, answer = post("/check", {"goal": "Search for docs", "tools": ["web_search"], "context": {}})
assert (status, answer["verdict"]) == (200, "ALLOW") and answer["risk_score"] <= 99
assert not any(issue["severity"] in ("HIGH", "CRITICAL") for issue in answer["issues"])
for name in ("risk_score", "value_risk", "waste_risk", "timestamp", "evaluated_at"):
    assert type(answer[name]) is int, name
status, answer = post("/check", {"goal": ""})
assert status == 422 and "goal" in answer["message"] and answer["detail"]["detail"] == answer["message"], answer
status, answer = post("/check", {"goal": "x"}, key="bad")
assert status == 401 and "verdict" not in answer
print("ok")
"#;

#[tokio::test]
async fn pythons_own_client_with_strict_verification_works() {
    let stack = Stack::build().dev().await;
    let python = Command::new("python3")
        .args([
            "-c",
            PYTHON,
            &format!("{}/", stack.urls[0]),
            stack.ca().to_str().unwrap(),
            stack.api.key.as_ref().unwrap(),
        ])
        .output()
        .expect("python3, which scripts/test.sh asks for");
    assert!(python.status.success(), "{}", String::from_utf8_lossy(&python.stderr));
}

#[tokio::test]
async fn the_printed_curl_works_when_pasted() {
    let stack = Stack::build().dev().await;
    let said = stack.dev.as_ref().unwrap().said();
    // The log goes to the other output, and is JSON here.
    let lines: Vec<_> = said.lines().filter(|line| !line.starts_with("{\"timestamp\"")).collect();
    let first = lines.iter().position(|line| line.trim_start().starts_with("curl ")).expect("a curl in the banner");
    let mut command = String::new();
    for line in &lines[first..] {
        command.push_str(line.trim_end_matches('\\'));
        command.push('\n');
        if !line.ends_with('\\') && command.matches('\'').count().is_multiple_of(2) {
            break;
        }
        if line.ends_with('\\') {
            command.pop();
        }
    }
    let shell = Command::new("sh").args(["-c", &command]).output().expect("a shell");
    let answer = String::from_utf8_lossy(&shell.stdout);
    let problem = String::from_utf8_lossy(&shell.stderr);
    assert!(shell.status.success() && answer.contains("\"verdict\""), "{command}\n{answer}\n{problem}");
}
