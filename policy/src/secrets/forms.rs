//! Real forms and harmless look-alikes, each with its name: what is found, where, and what is left of it.
//!
//! No text here is a secret: `<a36>` stands for 36 letters and digits, `<h32>` for 32 hexadecimal digits, `<u16>`
//! for capitals and digits, `<l20>` for small letters and digits, `<d10>` for digits, `<=…>` for itself. What
//! stands there must be shown nowhere.

use serde_json::{Map, Value, json};
use stage0_contract::CheckRequest;

use super::{REDACTED, baseline, find, mask};
use crate::time_limit::TimeLimit;

/// One for each kind that was known first: its kind, a text with it, and what must not be shown of it.
pub(crate) const EXAMPLES: [(&str, &str, &str); 21] = [
    ("private_key", "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNza", "b3BlbnNza"),
    ("private_key", "-----BEGIN PGP PRIVATE KEY BLOCK-----", "PGP"),
    ("aws_access_key_id", "key ASIAIOSFODNN7EXAMPLE.", "IOSFODNN7EXAMPLE"),
    ("aws_secret_access_key", "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "bPxRfiCYEXAMPLEKEY"),
    ("gcp_api_key", "AIzaSyA1234567890abcdefghijklmnopqrstuv", "hijklmnopqrstuv"),
    ("github_token", "ghp_0123456789abcdefghijABCDEFGHIJ012345", "ABCDEFGHIJ012345"),
    ("github_token", "github_pat_11ABCDEFG0123456789_abcdef", "0123456789_abcdef"),
    ("gitlab_token", "glpat-0123456789abcdefghij", "abcdefghij"),
    ("slack_token", "xoxb-123456789012-abcdef", "abcdef"),
    ("stripe_key", "sk_live_0123456789abcdefghij", "abcdefghij"),
    ("anthropic_key", "sk-ant-api03-abcdefghijklmnopqrst", "klmnopqrst"),
    ("openai_key", "sk-proj-Abcdefghijklmnop0123456789", "klmnop0123456789"),
    ("stage0_key", "s0_0w3ge1r70w3ge1r7_144gj289144gj289144gj289144gj289ka2s328", "144gj289"),
    ("jwt", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3", "dozjgNryP4J3"),
    ("bearer_token", "Authorization: Bearer abc123def456ghi789", "def456ghi789"),
    ("basic_credentials", "Authorization: Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
    ("azure_key", "AccountName=a;AccountKey=abcdefghijklmnopqrstuvwxyz0123==", "uvwxyz0123"),
    ("url_credentials", "postgres://app:s3cr3t@db/main", "s3cr3t"),
    ("url_credentials", "redis://:hunter22@cache:6379", "hunter22"),
    ("url_credentials", "https://0123456789abcdefghij0123@git.example.com/x", "abcdefghij0123"),
    ("password", "password=hunter22", "hunter22"),
];

/// Forms that are found by prefix or shape: the kind, and a text with one.
const BY_FORM: &[(&str, &str)] = &[
    ("stage0_key", "s0_0w3ge1r70w3ge1r7_<=144gj289144gj289144gj289144gj289ka2s328>"),
    ("webhook_secret", "whsec_<a32>"),
    ("webhook_secret", "whsec_<=4Xk9vQ2mZ7pLr8TtB3nWaBcDeFgHiJkLm+/8=>"),
    ("private_key", "-----BEGIN EC PRIVATE KEY-----\n<a64>\n-----END EC PRIVATE KEY-----"),
    ("private_key", "----- BEGIN RSA PRIVATE KEY -----\n<a64>\n----- END RSA PRIVATE KEY -----"),
    ("private_key", r"-----BEGIN PRIVATE KEY-----\n<a64>\n-----END PRIVATE KEY-----\n"),
    ("private_key", "-----BEGIN ENCRYPTED  PRIVATE\nKEY-----\r\n<a64>"),
    ("private_key", "-----begin private key-----<a64>-----end private key-----"),
    ("private_key", "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC<a64>"),
    ("private_key", "b3BlbnNzaC1rZXktdjEAAAAABG5vbmU<a64>"),
    ("encoded_private_key", "LS0tLS1CRUdJTiBSU0EgUFJJVkFURSBLRVktLS0tLQo<a64>"),
    ("encoded_private_key", "LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0t<a64>"),
    ("encoded_private_key", "LS0tLS1CRUdJTiBPUEVOU1NIIFBSSVZBVEUgS0VZLS0tLS0K<a64>"),
    ("age_secret_key", "AGE-SECRET-KEY-1<u58>"),
    ("json_web_key", r#"{"kty":"EC","crv":"P-256","d":"<a43>"}"#),
    ("aws_access_key_id", "AKIA<u16>"),
    ("aws_access_key_id", "AKIA<=IOSFODNN7EXAMPLE>"),
    ("aws_access_key_id", "ASIA<u16>"),
    ("aws_bedrock_key", "ABSK<a110>"),
    ("signed_url", "https://x.blob.core.windows.net/c?sv=2022&sig=<a40>%3D"),
    ("signed_url", "https://b.s3.amazonaws.com/o?X-Amz-Signature=<h64>"),
    ("gcp_api_key", "AIza<a35>"),
    ("google_oauth", "GOCSPX-<a28>"),
    ("google_oauth", "ya29.<a60>"),
    ("google_oauth", "1//0<a60>"),
    ("azure_key", "AccountKey=<a86>=="),
    ("azure_key", "abc8Q~<a34>"),
    ("digitalocean_token", "dop_v1_<h64>"),
    ("digitalocean_token", "doo_v1_<h64>"),
    ("alibaba_key", "LTAI5t<a18>"),
    ("cloudflare_token", "v1.0-<h24>-<h146>"),
    ("heroku_key", "HRKU-AA<a58>"),
    ("fly_token", "fo1_<a43>"),
    ("github_token", "ghs_<a36>"),
    ("github_token", "github_pat_<a22>_<a59>"),
    ("gitlab_token", "glpat-<a20>"),
    ("gitlab_token", "gldt-<a20>"),
    ("gitlab_token", "glrt-<a20>"),
    ("gitlab_token", "GR1348941<a20>"),
    ("bitbucket_token", "ATBB<a32>"),
    ("atlassian_token", "ATATT3xFfGF0<a60>"),
    ("npm_token", "npm_<a36>"),
    ("npm_token", "//registry.npmjs.org/:_authToken=<a36>"),
    ("pypi_token", "pypi-AgEIcHlwaS5vcmc<a80>"),
    ("rubygems_token", "rubygems_<h48>"),
    ("cargo_token", "cio<a32>"),
    ("nuget_key", "oy2<l43>"),
    ("docker_token", "dckr_pat_<a27>"),
    ("artifactory_key", "AKCp<a69>"),
    ("terraform_token", "<a14>.atlasv1.<a60>"),
    ("vault_token", "hvs.<a90>"),
    ("vault_token", "hvb.<a138>"),
    ("vault_token", "s.<a24>"),
    ("doppler_token", "dp.pt.<a43>"),
    ("doppler_token", "dp.st.prd.<a40>"),
    ("pulumi_token", "pul-<h40>"),
    ("sonar_token", "squ_<h40>"),
    ("sourcegraph_token", "sgp_<h40>"),
    ("netlify_token", "nfp_<a36>"),
    ("supabase_key", "sbp_<h40>"),
    ("planetscale_token", "pscale_tkn_<a43>"),
    ("planetscale_token", "pscale_pw_<a43>"),
    ("openshift_token", "sha256~<a43>"),
    ("one_password_key", "A3-<u6>-<u11>-<u5>-<u5>-<u5>"),
    ("one_password_key", "ops_eyJ<a250>"),
    ("slack_token", "xoxb-123456789012-1234567890123-<a24>"),
    ("slack_token", "xoxp-123456789012-123456789012-<a32>"),
    ("slack_token", "xapp-1-A0123456789-1234567890123-<h64>"),
    ("slack_webhook", "https://hooks.slack.com/services/T0000AAAA/B0000BBBB/<a24>"),
    ("discord_webhook", "https://discord.com/api/webhooks/<d18>/<a68>"),
    ("discord_webhook", "https://discordapp.com/api/v10/webhooks/<d18>/<a68>"),
    ("discord_token", "MT<a22>.<a6>.<a38>"),
    (
        "teams_webhook",
        "https://acme.webhook.office.com/webhookb2/<h8>-<h4>-<h4>-<h4>-<h12>@<h36>/IncomingWebhook/<h32>/<h36>",
    ),
    ("telegram_token", "<d10>:AA<a33>"),
    ("telegram_token", "https://api.telegram.org/bot<d9>:ABC<a32>/getMe"),
    ("twilio_key", "SK<h32>"),
    ("sendgrid_key", "SG.<a22>.<a43>"),
    ("mailgun_key", "key-<h32>"),
    ("mailchimp_key", "<h32>-us12"),
    ("brevo_key", "xkeysib-<h64>-<a16>"),
    ("resend_key", "re_<a8>_<a24>"),
    ("stripe_key", "sk_test_<a24>"),
    ("stripe_key", "rk_live_<a24>"),
    ("square_token", "sq0atp-<a22>"),
    ("square_token", "sq0csp-<a43>"),
    ("shopify_token", "shpat_<h32>"),
    ("shopify_token", "shpss_<h32>"),
    ("razorpay_key", "rzp_live_<a14>"),
    ("anthropic_key", "sk-ant-api03-<a93>AA"),
    ("openai_key", "sk-<a20>T3BlbkFJ<a20>"),
    ("openai_key", "sk-proj-<a48>"),
    ("openai_key", "sk-or-v1-<h64>"),
    ("huggingface_token", "hf_<a34>"),
    ("model_provider_key", "gsk_<a52>"),
    ("model_provider_key", "xai-<a80>"),
    ("model_provider_key", "pplx-<a48>"),
    ("model_provider_key", "r8_<a37>"),
    ("model_provider_key", "nvapi-<a64>"),
    ("databricks_token", "dapi<h32>"),
    ("new_relic_key", "NRAK-<u27>"),
    ("sentry_token", "sntrys_eyJpYXQiOjE<a80>_<a43>"),
    ("sentry_token", "sntryu_<h64>"),
    ("grafana_token", "glsa_<a32>_<h8>"),
    ("grafana_token", "glc_eyJ<a60>"),
    ("dynatrace_token", "dt0c01.<u24>.<u64>"),
    ("observability_key", "PMAK-<h24>-<h34>"),
    ("linear_key", "lin_api_<a40>"),
    ("notion_token", "ntn_<d11><a35>"),
    ("notion_token", "secret_<a43>"),
    ("figma_token", "figd_<a40>"),
    ("airtable_token", "pat<a14>.<h64>"),
    ("dropbox_token", "sl.<a130>"),
    ("okta_token", "Authorization: SSWS 00<a40>"),
    ("tailscale_key", "tskey-auth-<a12>-<a32>"),
    ("nkey_seed", "SU<u56>"),
    ("jwt", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NSJ9.<a43>"),
    ("jwt", "eyJhbGciOiJub25lIn0.eyJzdWIiOiI<a30>."),
    ("bearer_token", "curl -H 'Authorization: Bearer <a32>'"),
    ("bearer_token", "Authorization: token <h40>"),
    ("bearer_token", r#"{\"Authorization\": \"Bearer <a32>\"}"#),
    ("basic_credentials", "Authorization: Basic <=YWRtaW46U3VwM3JTM2NyZXQ5>"),
    ("url_credentials", "mysql://root:<=Sup3rS3cret9>@10.0.0.1:3306/app"),
    ("url_credentials", "mongodb+srv://app:<=Sup3rS3cret9>@cluster0.example.net/?w=1"),
    ("url_credentials", "https://bob:<=Sup3rS3cret9>@git.example.com/x.git"),
    ("url_credentials", "amqp://guest:<=Sup3rS3cret9>@mq"),
    ("url_credentials", "app:<=Sup3rS3cret9>@tcp(db:3306)/main"),
    ("login_option", "curl -u admin:<=Sup3rS3cret9> https://example.com"),
    ("login_option", "wget --user admin:<=Sup3rS3cret9> https://example.com"),
    ("login_option", "mysql -h db -u root -p<=Sup3rS3cret9> app"),
    ("login_option", "sshpass -p <=Sup3rS3cret9> ssh root@host"),
    ("login_option", "openssl rsa -passin pass:<=Sup3rS3cret9>"),
    ("login_option", "machine example.com login bob password <=Sup3rS3cret9>"),
    ("session_cookie", "Cookie: theme=dark; sid=<a40>"),
    ("session_cookie", "Set-Cookie: connect.sid=s%3A<a32>.<a43>; Path=/"),
];

/// Secrets that their names tell.
const BY_NAME: &[&str] = &[
    "password=<=hunter22>",
    "password1: <=Sup3rS3cret9>",
    "DB_PASS=<=hunter22>",
    "DB_PASSWORD='<=correcthorse>'",
    "PGPASSWORD=<=Sup3rS3cret9> psql -h db",
    "MYSQL_ROOT_PASSWORD=<=Sup3rS3cret9>",
    "PASSWORD_PROD=<=hunter22>",
    "spring.datasource.password=<=Sup3rS3cret9>",
    "dbPassword: <=Sup3rS3cret9>",
    "--password <=Sup3rS3cret9>",
    "--password=<=Sup3rS3cret9>",
    "--token <a24>",
    "--api-key <a24>",
    "-password <=Sup3rS3cret9>",
    r#"{"password": "<=correcthorse>"}"#,
    r#"{\"password\": \"<=correcthorse>\"}"#,
    r#"{\\\"db\\\":{\\\"pwd\\\":\\\"<=correcthorse>\\\"}}"#,
    r#"{'password': '<=correcthorse>'}"#,
    r#"{"name": "DB_PASSWORD", "value": "<=correcthorse>"}"#,
    r#"<password><=Sup3rS3cret9></password>"#,
    r#"<add key="Password" value="<=Sup3rS3cret9>" />"#,
    "**Password:** <=Sup3rS3cret9>",
    "Server=db;Database=app;User Id=sa;Password=<=Sup3rS3cret9>;",
    "Driver={ODBC};Uid=sa;Pwd=<=Sup3rS3cret9>",
    "jdbc:postgresql://db/app?user=app&password=<=Sup3rS3cret9>",
    "host=db user=app password=<=Sup3rS3cret9> dbname=main",
    "/login?user=x&password=<=Sup3rS3cret9>",
    "the password is <=Sup3rS3cret9>",
    "log in with password <=Sup3rS3cret9>",
    "Reset password: <=Sup3rS3cret9>",
    "密码: <=Sup3rS3cret9>",
    "密码是 <=Sup3rS3cret9>",
    "数据库密码：<=Sup3rS3cret9>",
    "пароль: <=Sup3rS3cret9>",
    "Пароль = <=Sup3rS3cret9>",
    "contraseña: <=Sup3rS3cret9>",
    "La contraseña es <=Sup3rS3cret9>",
    "mot de passe : <=Sup3rS3cret9>",
    "Passwort: <=Sup3rS3cret9>",
    "senha: <=Sup3rS3cret9>",
    "パスワード: <=Sup3rS3cret9>",
    "パスワードは<=Sup3rS3cret9>",
    "비밀번호: <=Sup3rS3cret9>",
    "hasło: <=Sup3rS3cret9>",
    "passphrase: \"<=correct horse battery staple>\"",
    "passphrase=<=correct horse battery staple>",
    "passphrase: <=Sup3rS3cret9>",
    "gpg --passphrase <=Sup3rS3cret9>",
    "mnemonic: <=abandon ability able about above absent absorb abstract absurd abuse access accident>",
    "client_secret => '<a24>'",
    "clientSecret:=<a24>",
    "api_key='<=abcd1234>'",
    "apiKey: <=aB3dE6gH9>",
    "X-Api-Key: <a40>",
    "Api key: <a24>",
    "use the API key <a32> for it",
    "SECRET_KEY_BASE=<h128>",
    "HEROKU_API_KEY=<h8>-<h4>-<h4>-<h4>-<h12>",
    "?access_token=<=abcdef123>&x=1",
    "?token=<a24>",
    "token: <a24>",
    "csrf_token=<a24>",
    "credentials: admin:<=Sup3rS3cret9>",
    "private-key = <=MIIEvQIBADANBg>",
    "encryptionKey = \"<h64>\"",
    "PHPSESSID=<l26>",
    "session=<a40>",
    "TWILIO_AUTH_TOKEN=<h32>",
    "AZURE_CLIENT_SECRET=<a40>",
    "DATADOG_API_KEY: <h32>",
    "user/pass: admin/<=Sup3rS3cret9>",
    "password :\n  <=Sup3rS3cret9>",
    "PASSWORD%3D<=Sup3rS3cret9>",
    "kennwort ist <=Hunter22>",
    "X-Vault-Token: <a24>",
    "APIキー：<a24>",
    "clave: <a24>",
];

/// What only looks like one, in a text.
const HARMLESS: &[&str] = &[
    "password = getpass.getpass()",
    "password = input('password? ')",
    "req.body.password",
    "const password = req.body.password;",
    "password=self.password",
    "password = settings.DB_PASSWORD",
    "api_key = os.environ['KEY']",
    "api_key=config.get(\"api_key\")",
    "token = get_token()",
    "token := r.Header.Get(\"Authorization\")",
    "secret = Secret::new()",
    "apiKey: process.env.API_KEY",
    "if password == confirmPassword then save",
    "password=user_password",
    "password: String!",
    "token: string",
    "password varchar(255)",
    r#"{"pwd": "src/app"}"#,
    r#"{"secret": "db-credentials"}"#,
    r#"{"api_key": "production-key-2", "access_key": "users/42", "secret": "db-main"}"#,
    r#"{"password": "minimum-12-characters"}"#,
    "password: minimum-12-characters",
    "password=minimum-12-characters",
    "/login?password=&user=x",
    "Password=;User=sa",
    "commit 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b",
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "image nginx@sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "md5 d41d8cd98f00b204e9800998ecf8427e",
    "run 0190163d-8694-739b-aea5-966c26f8ad91",
    "session_id: 0190163d-8694-739b-aea5-966c26f8ad91",
    "session: 0190163d-8694-739b-aea5-966c26f8ad91",
    "arn:aws:secretsmanager:eu-west-1:123456789012:secret:db/main-AbCdEf",
    "secret: arn:aws:secretsmanager:eu-west-1:123456789012:secret:db/main-AbCdEf",
    "postgres://app:${PGPASSWORD}@db/app",
    "https://<user>:<password>@host",
    "https://user:password@host/x",
    "password=${DB_PASSWORD}",
    "password=$DB_PASSWORD",
    "password=$(cat /run/secrets/db)",
    "password=%DB_PASSWORD%",
    "password={password}",
    "password=<your password>",
    "Use api_key={{ secrets.API_KEY }} in the template",
    "token: ${{ secrets.GITHUB_TOKEN }}",
    "Log shows password=******** as it should",
    "password=xxxxxxxx",
    "password: [redacted]",
    "Explain how the secret: sharing protocol works",
    "Rotate the access key: old one is deactivated",
    "Reset the password: user forgot it",
    "Password: must be rotated monthly",
    "password policy: 12 characters",
    "the password is required",
    "the token is expired",
    "reset the password for user42",
    "passwords are hashed with Argon2id",
    "the password hash is bcrypt2b",
    "password: changeme",
    "api_key: your-api-key-here",
    "Read secret_key: /run/secrets/app and start",
    "client_secret: vault:kv/app1",
    "secret: projects/123/secrets/db/versions/2",
    "password: op://vault/db/password",
    "Install https://packages.example.org/@scope/pkg",
    "https://example.com:8443/path@tag",
    "mail ops@example.com about it",
    "-----BEGIN CERTIFICATE----- MIIB -----END CERTIFICATE----- is the server certificate",
    "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n-----END PUBLIC KEY-----",
    "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCk1JSUJJakFOQmdrcWhraUc5",
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl ops@host",
    "public_key: MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE",
    "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kudu6p6nqyqy2u5",
    "max_tokens: 4096",
    "token_count: 512",
    "tokens=1000000",
    "next_page_token: CAESBQoDZm9vGgRiYXIxMjM0NTY3ODk",
    "page_token=AbCdEf123456789AbCdEf",
    "cache_key: user-42-profile-v2",
    "key: users/42/avatar.png",
    "primary key: 42",
    "Idempotency-Key: 7f3c2a9e-8694-739b-aea5-966c26f8ad91",
    "AWS_REGION=eu-west-1 AWS_PROFILE=production",
    "secret_name: db-credentials",
    "secretKeyRef: name: db, key: password",
    "password_reset_url: https://example.com/reset",
    "password-less login is planned for 2027",
    "the risk-assessment-of-the-whole-department",
    "sk-learn-is-a-popular-python-library",
    "a bearer token is needed",
    "bearer authentication-is-required",
    "Authorization: Bearer <token>",
    "Authorization: Bearer $TOKEN",
    "docker run -u 1000:1000 nginx",
    "docker run -u root:root nginx",
    "mysql -u root -p app",
    "npm_config_registry=https://registry.example.org",
    "eyJ is how a token starts",
    "AKIA is a prefix",
    "hf_hub_download and npm_lifecycle_event are names",
    "Review: filterMode == FilterMode.OFFLINE && key.isPersistent()",
    "PWD=/home/app/src2",
    "secret: none, token: null",
    "secret santa: who gives what to whom",
    "git checkout release-2026-03-15T09-30-00Z-build-1234",
    "eu-west-1.compute.internal:8080/service/payments/v2",
    "Deploy payments-service-7d9f8b6c5d-x2k4q to production",
    "see JIRA-1234 for the secret",
    "the 2FA code is sent by mail",
    "docker build --secret id=npmrc,src=.npmrc .",
    "docker login --username bob --password-stdin registry.example.org",
    "fetch(url, {credentials: 'include'})",
    "permissions: {id-token: write, contents: read}",
    "the password: 'must be changed on first use'",
    "passphrase: whatever you like",
    "mnemonic: AX is the accumulator",
    "seed phrase: 12 words",
    "助记词: 必填",
    "WWW-Authenticate: Bearer realm=\"api\"",
    "secret: kubernetes.io/tls",
    "token = \"gpt-4o-mini\"",
    "密码: 必填",
    "пароль: обязательно",
];

/// As members of a context.
fn harmless_members() -> Vec<Value> {
    vec![
        json!({"api_key": "production-key-2", "access_key": "users/42", "secret": "db-main"}),
        json!({"pwd": "src/app"}),
        json!({"secret": "db-credentials"}),
        json!({"password": "minimum-12-characters"}),
        json!({"password": "required", "token": "none", "api_key": null, "secret": true}),
        json!({"password": "********", "token": "[redacted]", "api_key": "${API_KEY}"}),
        json!({"max_tokens": 4096, "token_count": 512, "tokens": 1000, "prompt_tokens": "128"}),
        json!({"next_page_token": "CAESBQoDZm9vGgRiYXIxMjM0NTY3ODk", "cursor": "b3BhcXVlY3Vyc29yMTIz"}),
        json!({"session_id": "0190163d-8694-739b-aea5-966c26f8ad91", "key_id": "key_01HXYZABCDEF"}),
        json!({"public_key": "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE"}),
        json!({"password_policy": "strong-policy", "password_changed_at": "2026-03-15"}),
        json!({"secret_arn": "arn:aws:secretsmanager:eu-west-1:1:secret:x", "secret": "arn:aws:kms:eu-west-1:1:key/x"}),
        json!({"credentials": "aws-prod", "credential": "default", "secrets": ["db-main", "smtp-prod"]}),
        json!({"key": "users/42/avatar.png", "cache_key": "a:b:42",
            "commit": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b"}),
        json!({"token": "USDC", "token_type": "bearer", "standard": "ERC1155", "auth": "oauth2"}),
        json!({"env": [{"name": "LOG_LEVEL", "value": "correcthorse"},
            {"name": "DB_PASSWORD", "value": "${DB_PASSWORD}"}]}),
        json!({"session": "staging-agent-7", "pass": "second-review", "login": "bob"}),
        json!({"password": "user forgot it", "secret": "no"}),
        json!({"digest": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}),
        json!({"next_token": 7, "passwordless": "enabled-by-default", "approval_status": "approved"}),
    ]
}

fn secret_members() -> Vec<(Value, &'static str)> {
    vec![
        (json!({"password": "correcthorse"}), "correcthorse"),
        (json!({"db": {"DB_PASS": "hunter22"}}), "hunter22"),
        (json!({"password1": "Sup3rS3cret9"}), "Sup3rS3cret9"),
        (json!({"password": 12_345_678}), "12345678"),
        (json!({"token": "4Xk9vQ2mZ7pLr8TtB3nW"}), "4Xk9vQ2mZ7pLr8TtB3nW"),
        (json!({"apiKey": ["4Xk9vQ2mZ7pLr8TtB3nW"]}), "4Xk9vQ2mZ7pLr8TtB3nW"),
        (json!({"clientSecret": "8f14e45fceea167a5a36dedd4bea2543"}), "8f14e45fceea167a5a36dedd4bea2543"),
        (json!({"headers": {"Authorization": "Basic dXNlcjpwYXNzd29yZA=="}}), "dXNlcjpwYXNzd29yZA=="),
        (json!({"headers": {"Authorization": "Bearer abc123def"}}), "abc123def"),
        (json!({"headers": {"X-Api-Key": "4Xk9vQ2mZ7pLr8TtB3nW"}}), "4Xk9vQ2mZ7pLr8TtB3nW"),
        (json!({"headers": {"Cookie": "theme=dark; session=4Xk9vQ2mZ7pLr8TtB3nW"}}), "4Xk9vQ2mZ7pLr8TtB3nW"),
        (json!({"env": [{"name": "DB_PASSWORD", "value": "correcthorse"}]}), "correcthorse"),
        (json!({"密码": "correcthorse"}), "correcthorse"),
        (json!({"contraseña": "correcthorse"}), "correcthorse"),
        (json!({"passphrase": "correct horse battery staple"}), "correct horse battery staple"),
        (json!({"credentials": "admin:Sup3rS3cret9"}), "admin:Sup3rS3cret9"),
        (json!({"body": "{\"password\": \"correcthorse\"}"}), "correcthorse"),
        (json!({"args": ["--password=Sup3rS3cret9"]}), "Sup3rS3cret9"),
        (json!({"args": ["--user", "bob", "--password", "Sup3rS3cret9"]}), "Sup3rS3cret9"),
    ]
}

/// A text with its secrets, and these.
pub(crate) fn expand(template: &str) -> (String, Vec<String>) {
    const ALL: &[u8] = b"4Xk9vQ2mZ7pLr8TtB3nWaB5dE6gH0jK1sN";
    let (mut text, mut secrets, mut rest) = (String::new(), Vec::new(), template);
    while let Some((before, after)) = rest.split_once('<') {
        text.push_str(before);
        let (inside, behind) = after.split_once('>').unwrap_or((after, ""));
        let letters: Option<Vec<char>> = match inside.chars().next() {
            Some('a') => Some(ALL.iter().map(|b| char::from(*b)).collect()),
            Some('h') => Some("8f14e45fceea167a5a36dedd4bea2543".chars().collect()),
            Some('u') => Some("Q2MZ7PLR4XK6VTB3NWA5DE".chars().collect()),
            Some('l') => Some("q2mz7plr4xk9vt".chars().collect()),
            Some('d') => Some("1234567890".chars().collect()),
            _ => None,
        };
        let count = inside.get(1..).and_then(|count| count.parse::<usize>().ok());
        match (inside.strip_prefix('='), letters, count) {
            (Some(literal), ..) => secrets.push(literal.to_owned()),
            (None, Some(letters), Some(count)) => secrets.push(letters.iter().cycle().take(count).collect()),
            _ => {
                text.push('<');
                rest = after;
                continue;
            }
        }
        text.push_str(secrets.last().unwrap());
        rest = behind;
    }
    text.push_str(rest);
    (text, secrets)
}

/// Every real form as a text, with what must not be shown of it.
pub(crate) fn real() -> Vec<(String, Vec<String>)> {
    BY_FORM.iter().map(|(_, template)| *template).chain(BY_NAME.iter().copied()).map(expand).collect()
}

fn paths(body: Value) -> Vec<String> {
    find(&CheckRequest::parse(body).unwrap(), baseline()).into_iter().map(|found| found.path).collect()
}

/// All that fails, so that one run shows everything.
fn none_of(failures: &[String]) {
    assert!(failures.is_empty(), "{} fail:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn every_form_of_a_prefix_or_a_shape_is_found_and_reported_by_its_kind() {
    assert!(BY_FORM.len() >= 60);
    let told = BY_FORM
        .iter()
        .map(|(kind, template)| (*kind, expand(template).0))
        .chain(EXAMPLES.iter().map(|(kind, text, _)| (*kind, (*text).to_owned())));
    let wrong = told.filter_map(|(kind, text)| {
        let found = baseline().kind(&text, TimeLimit::NONE);
        let rest = format!("Call the service with {text} and read the answer");
        let within = baseline().kind(&rest, TimeLimit::NONE);
        (found != Some(kind) || within != Some(kind)).then(|| format!("{kind}: {text}: {found:?}, {within:?}"))
    });
    none_of(&wrong.collect::<Vec<_>>());
}

#[test]
fn every_secret_beside_a_telling_name_is_found() {
    assert!(BY_NAME.len() >= 60);
    let missed = BY_NAME.iter().map(|template| expand(template).0).filter(|text| {
        baseline().kind(text, TimeLimit::NONE).is_none()
            || baseline().kind(&format!("Call the service with {text} and read the answer"), TimeLimit::NONE).is_none()
    });
    none_of(&missed.collect::<Vec<_>>());
}

#[test]
fn a_real_form_is_found_in_every_field() {
    let mut missed = Vec::new();
    for (text, _) in real() {
        for (body, path) in [
            (json!({"goal": &text}), "goal"),
            (json!({"goal": "g", "context": {"note": &text}}), "context.*"),
            (json!({"goal": "g", "context": {"a": [{"b": &text}]}}), "context.*[0].*"),
            (json!({"goal": "g", "tools": ["t", &text]}), "tools[1]"),
            (json!({"goal": "g", "constraints": [&text]}), "constraints[0]"),
            (json!({"goal": "g", "success_criteria": [&text]}), "success_criteria[0]"),
            (json!({"goal": "g", "side_effects": [&text]}), "side_effects[0]"),
            (json!({"goal": "g", "context": {&text: 1}}), "context"),
        ] {
            if paths(body) != [path] {
                missed.push(format!("{path}: {text}"));
            }
        }
    }
    none_of(&missed);
}

#[test]
fn masking_leaves_nothing_of_a_real_form() {
    let mut shown = Vec::new();
    for (text, secrets) in real() {
        for around in [text.clone(), format!("so {text} so"), format!("see \"{text}\"")] {
            let masked = mask(&around, baseline());
            if !masked.contains(REDACTED) || secrets.iter().any(|secret| masked.contains(secret.as_str())) {
                shown.push(format!("{around}: {masked}"));
            }
        }
    }
    none_of(&shown);
}

#[test]
fn harmless_look_alikes_stay_untouched_wherever_they_stand() {
    assert!(HARMLESS.len() + harmless_members().len() >= 100);
    let mut denied = Vec::new();
    for text in HARMLESS {
        let kind = baseline().kind(text, TimeLimit::NONE);
        let within = format!("Read the report. {text} is what it says");
        for body in [
            json!({"goal": text}),
            json!({"goal": within}),
            json!({"goal": "g", "context": {"note": text}}),
            json!({"goal": "g", "context": {*text: 1}}),
            json!({"goal": "g", "tools": [text], "constraints": [text]}),
        ] {
            let paths = paths(body);
            if !paths.is_empty() {
                denied.push(format!("{text}: {kind:?} {paths:?}"));
                break;
            }
        }
        if mask(text, baseline()) != *text {
            denied.push(format!("{text}: masked as {}", mask(text, baseline())));
        }
    }
    for members in harmless_members() {
        let paths = paths(json!({"goal": "g", "context": members}));
        let text = members.to_string();
        if !paths.is_empty() {
            denied.push(format!("{text}: {paths:?}"));
        }
        if let Some(kind) = baseline().kind(&text, TimeLimit::NONE) {
            denied.push(format!("{text} as text: {kind}"));
        }
    }
    none_of(&denied);
}

#[test]
fn members_that_tell_of_a_secret_are_found_and_hidden() {
    let mut missed = Vec::new();
    for (members, secret) in secret_members() {
        if paths(json!({"goal": "g", "context": &members})).len() != 1 {
            missed.push(members.to_string());
        }
        let Value::Object(object) = &members else { panic!("{members}") };
        let masking = super::Masking::new(baseline(), TimeLimit::NONE);
        let shown: Map<String, Value> = masking.members(object).unwrap();
        if Value::from(shown.clone()).to_string().contains(secret) {
            missed.push(format!("shown: {shown:?}"));
        }
    }
    none_of(&missed);
}
