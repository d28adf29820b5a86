"""An agent that asks before it acts, waits for people where they must approve, acts once and reports what came of it.

Only Python's standard library. Arguments: the URL, the CA's file, the file with the key, the file of the request, and
the file that acting appends a line to. Prints the approval's id and digest as soon as it waits, for the approvers.
"""

import json
import ssl
import sys
import urllib.error
import urllib.request
import uuid

URL, CA, KEY_FILE, REQUEST_FILE, ACTED_FILE = sys.argv[1:]
TRUST = ssl.create_default_context(cafile=CA)
with open(KEY_FILE, encoding="utf-8") as file:
    KEY = file.read().strip()


def call(method, path, body=None, headers=None):
    """One call; the status and the answer."""
    request = urllib.request.Request(
        URL + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "X-API-KEY": KEY, **(headers or {})},
    )
    try:
        with urllib.request.urlopen(request, context=TRUST, timeout=70) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def check(body):
    """Asks until there is an answer. The same key for every repetition: a lost reply is not a second use."""
    key = {"Idempotency-Key": str(uuid.uuid4())}
    while True:
        try:
            status, answer = call("POST", "/check", body, key)
        except (urllib.error.URLError, TimeoutError):
            continue
        if status == 200:
            return answer
        if status != 503:
            sys.exit(f"the check was refused: {status} {answer}")


def wait(approval):
    """Waits until people have decided."""
    while approval["status"] == "pending":
        status, answer = call("GET", f"/v1/approvals/{approval['id']}?wait=30s")
        if status == 200:
            approval = answer
        elif status != 503:
            sys.exit(f"the approval cannot be read: {status} {answer}")
    return approval["status"]


def act(request_id):
    """What the agent is there for."""
    with open(ACTED_FILE, "a", encoding="utf-8") as file:
        file.write(f"{request_id}\n")


def main():
    with open(REQUEST_FILE, encoding="utf-8") as file:
        body = json.load(file)
    answer = check(body)
    while answer["verdict"] == "DEFER":
        approval = answer["approval"]
        if approval is None:
            sys.exit("more than an approval is missing: " + " ".join(answer["defer_questions"]))
        print(approval["id"], approval["action_digest"], flush=True)
        if (status := wait(approval)) != "approved":
            sys.exit(f"the approval is {status}")
        # The sealed request, not one that was worded anew.
        answer = check({"approval_id": approval["id"]})
    if answer["verdict"] != "ALLOW":
        sys.exit(answer["reason"])
    act(answer["request_id"])
    if answer["approval"] is not None:
        call("POST", f"/v1/approvals/{answer['approval']['id']}/outcome", {"status": "succeeded"})
    print("done", flush=True)


main()
