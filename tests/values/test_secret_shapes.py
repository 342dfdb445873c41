"""`torpor.values.secret_shapes`: it recognises secrets by the names of variables and flags, and by their values."""

from __future__ import annotations

import time

import pytest

from torpor.values.secret_shapes import (
    looks_secret,
    secret_arguments,
    secret_kind,
    secret_value,
    secrets_in,
    set_by_platform,
)

SECRET_NAMES = str.split("""
HF_TOKEN HUGGING_FACE_HUB_TOKEN HUGGINGFACE_TOKEN HF_TOKEN_READ HFTOKEN hf-token hfToken TOKEN token MY_TOKENS SAS_TOKEN
AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_ACCESS_KEY_ID aws_secret_access_key SGLANG_S3_SECRET_ACCESS_KEY OPENAI_API_KEY
OPENAI_KEY WANDB_API_KEY VLLM_API_KEY TORPOR_API_KEY NGC_API_KEY NGC_CLI_API_KEY EXA_API_KEY APIKEY MYAPIKEY ROBOFLOW_APIKEY
apiKey api-key ADMIN_API_KEY MYAPIKEY_OPENAI_APIKEY NEW_RELIC_LICENSE_KEY NEW_RELIC_TOKEN MINIO_TOKEN GITHUB_TOKEN GH_TOKEN
GITHUB_PAT AZURE_PAT ADO_PAT PAT PGPASSWORD MYSQL_PWD REDISCLI_AUTH DOCKER_AUTH_CONFIG NPM_CONFIG__AUTH BASIC_AUTH AUTH_HEADER
AUTHORIZATION BEARER BEARER_TOKEN PROXY_AUTHORIZATION SSH_PRIVATE_KEY SSH_KEY DEPLOY_KEY GPG_KEY STRIPE_SK DB_PASS SMTP_PASS
SSHPASS DBPASS ADMIN_PW DB_PASSWORD dbPassword PASSWORD MYSQL_ROOT_PASSWORD KEY_PASSPHRASE VAULT_TOKEN VAULT_PASSWD
SENTRY_DSN DATABASE_DSN NETRC COOKIE SESSION_COOKIE AUTH_COOKIE CI_JOB_JWT JWT_SIGNING_KEY SIGNING_KEY ENCRYPTION_KEY MASTER_KEY
SECRET SECRET_KEY SECRET_KEY_BASE CLIENT_SECRET DJANGO_SECRET_KEY KAGGLE_KEY KEY S3_KEY AZURE_STORAGE_KEY AZURE_SAS
AZURE_STORAGE_CONNECTION_STRING SERVICEBUS_CONN_STR GOOGLE_APPLICATION_CREDENTIALS GCP_CREDS MODAL_TOKEN_SECRET MODAL_TOKEN_ID
SLACK_WEBHOOK_URL DISCORD_WEBHOOK SLACK_BOT_TOKEN TLS_PEM TLS_KEY_PEM SEED_PHRASE
""")

HARMLESS_NAMES = str.split("""
PATH HOME PWD OLDPWD LANG KEYBOARD KEYMAP XKB_LAYOUT MONKEY TURKEY KEYRING KEY_NAME SORT_KEY CACHE_KEY PUBLIC_KEY SSH_PUBLIC_KEY
NUM_KEYS TOKENIZERS_PARALLELISM TOKENIZER TOKENIZER_PATH DETOKENIZER MAX_TOKENS MAX_NEW_TOKENS NUM_TOKENS EOS_TOKEN_ID TOKEN_LIMIT
CHUNK_TOKENS PASSTHROUGH BYPASS COMPASS PASSENGER FORWARD_PASS AUTHOR GIT_AUTHOR_NAME AUTHOR_EMAIL AUTHENTICATION_MODE SSH_AUTH_SOCK
XAUTHORITY XDG_SESSION_ID PATTERN PATCH_LEVEL PATIENCE SASS SECRETARY COOKIECUTTER COOKIE_DOMAIN TOKEN_TYPE PASSWORD_LENGTH
PASSWORD_FILE PGPASSFILE SECRET_NAME HF_TOKEN_PATH AWS_WEB_IDENTITY_TOKEN_FILE AWS_CONTAINER_CREDENTIALS_RELATIVE_URI
HF_HUB_OFFLINE HF_HUB_CACHE HF_HUB_DISABLE_IMPLICIT_TOKEN HF_HUB_DISABLE_TELEMETRY HF_XET_HIGH_PERFORMANCE CUDA_VISIBLE_DEVICES
NCCL_DEBUG NVIDIA_VISIBLE_DEVICES TORCH_NCCL_ASYNC_ERROR_HANDLING TRITON_CACHE_DIR DG_JIT_CACHE_DIR VLLM_USE_V1 TORPOR_REPLICA_ID
MODAL_TASK_ID MODAL_REGION PYTHON_SHA256 LD_LIBRARY_PATH OMP_NUM_THREADS VLLM_MAX_TOKENS_PER_EXPERT_FUSED_MOE
VLLM_MULTI_STREAM_GEMM_TOKEN_THRESHOLD VLLM_ENABLE_PREGRAD_PASSES SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK
SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION SGLANG_INIT_NEW_TOKEN_RATIO SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR SGLANG_MINIMAX_VIT_TOKEN_BLOCK
SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS SGLANG_FLASHINFER_NVFP4_PER_TOKEN_ACTIVATION SGLANG_SIMULATE_ACC_TOKEN_MODE
SGLANG_SYNC_TOKEN_IDS_ACROSS_TP SGLANG_LOG_DECODE_GRAPH_KEY SGLANG_ROUTING_KEY_POLICY_DEBUG_LOG SGLANG_MLA_DEDUP_CHUNK_TOKENS
SGLANG_KV_CANARY_PERTURB_REQ_TO_TOKEN_PROB max-num-batched-tokens long-prefill-token-threshold tokenizer-mode ssl-keyfile
""")


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_the_name_of_a_secret_is_recognised(name: str) -> None:
    """Variables and flags, in upper and lower case, with and without underscores."""
    assert looks_secret(name)
    assert secret_kind(name, "x") == "its name says so"
    assert secret_kind(name, "") is None


@pytest.mark.parametrize("name", HARMLESS_NAMES)
def test_a_name_that_only_sounds_like_a_secret_passes(name: str) -> None:
    """Counts of tokens, places, settings, and words that contain KEY, PASS, PAT or AUTH by chance."""
    assert not looks_secret(name)
    assert secret_kind(name, "x") is None


TWENTY = "aB3dE6gH9jK2mN5pQ8sT"

SECRET_VALUES = {
    "postgres://app:hunter2@db.test/app": "a URL with a password",
    "redis://:hunter2@cache.test:6379/0": "a URL with a password",
    "postgres://app:12345@db.test": "a URL with a password",
    "mongodb+srv://u:p%40ss@c.test/?w=1": "a URL with a password",
    "postgres://u:pa/ss@db.test/app": "a URL with a password",
    "http://user:pass@proxy.test:3128": "a URL with a password",
    "user:pass@proxy.test:3128": "an address with a password",
    "https://api.telegram.org/bot123456:AAF-x/sendMessage": "a webhook address",
    "https://a.test/simple https://user:pass@b.test/simple": "a URL with a password",
    f"https://{TWENTY}@pkgs.test/simple": "a URL with a token",
    "https://x.blob.test/c?sv=2024&sig=abcdefgh12345678": "a signed URL",
    "https://hooks.slack.com/services/T0/B0/abc": "a webhook address",
    "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl": "a private key",
    "-----BEGIN PRIVATE KEY-----\\nMIIE": "a private key",
    "-----BEGIN PGP PRIVATE KEY BLOCK-----": "a private key",
    f"hf_{TWENTY}{TWENTY}": "a Hugging Face token",
    f"ghp_{TWENTY}{TWENTY}": "a GitHub token",
    f"github_pat_11{TWENTY}_{TWENTY}": "a GitHub token",
    f"glpat-{TWENTY}": "a GitLab token",
    "AKIAIOSFODNN7EXAMPLE": "an AWS access key",
    "xoxb-1234567890-abcdefghij": "a Slack token",
    f"AIzaSy{TWENTY}{TWENTY}": "a Google key",
    f"sk-{TWENTY}": "an API key",
    f"sk-proj-{TWENTY}-{TWENTY}": "an API key",
    f"nvapi-{TWENTY}": "an API key",
    f"sk_live_{TWENTY}": "a payment key",
    f"ak-{TWENTY}aZ": "a Modal token",
    f"as-{TWENTY}aZ": "a Modal token",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln": "a JSON web token",
    "Authorization: Bearer abcdef123456789": "an authorization header",
    "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=abc==;": "a connection string with a password",
    "Server=db;User=sa;Password=hunter2": "a connection string with a password",
    "machine h.test login me password hunter2": "a login of .netrc",
    '{"auths": {"r.test": {"auth": "dXNlcjpwYXNz"}}}': "registry credentials",
}

HARMLESS_VALUES = [
    "http://proxy.test:3128",
    "http://localhost:8000/v1/@me",
    "http://a.test:80,http://b.test:81/x@y",
    "postgres://db.test/app",
    "postgres://app@db.test/app",
    "https://user:${PASSWORD}@host.test/",
    "https://user:***@host.test/",
    "user:${PASSWORD}@host.test:5432",
    "host.test:8000",
    "registry.test/engine:1@sha256:0123456789abcdef",
    "engine:1@sha256:0123456789abcdef0123456789abcdef",
    "git@github.test:owner/name.git",
    "/usr/local/bin:/usr/bin",
    "Qwen/Qwen3-8B-FP8",
    "as-is",
    "sk-learn-with-a-very-long-name-of-words",
    "ak-short",
    "basic authentication is off",
    "password=$1",
    "A035C8C19219BA821ECEA86B64E628F8D684696D",
    '{"rope_scaling": {"factor": 4.0}}',
    "-----BEGIN CERTIFICATE-----",
    "hf_transfer",
]


@pytest.mark.parametrize("value", SECRET_VALUES)
def test_a_value_of_a_secrets_shape_is_recognised_under_any_name(value: str) -> None:
    """The result names the kind and contains nothing of the value."""
    kind = secret_kind("SOME_SETTING", value)
    assert kind == SECRET_VALUES[value]
    assert secrets_in({"SOME_SETTING": value}) == {"SOME_SETTING": kind}


@pytest.mark.parametrize("value", HARMLESS_VALUES)
def test_a_value_without_a_secret_passes(value: str) -> None:
    """URLs with only a port or a user, placeholders, names and digests."""
    assert secret_value(value) is None


def test_a_number_a_switch_a_folder_or_a_fingerprint_is_no_secret() -> None:
    """If the name alone does not decide. A password may be a number."""
    assert secrets_in({"REQUIRE": "x", "BATCH_KEYS": "12", "MY_TOKENS": "4096", "PROXY_AUTH": "true"}) == {}
    assert secrets_in({"SOME_PWD": "/home/me", "GPG_KEY": "A035C8C19219BA821ECEA86B64E628F8D684696D"}) == {}
    assert set(secrets_in({"DB_PASSWORD": "1234", "DB_PASS": "1234", "HF_TOKEN": "1"})) == {
        "DB_PASSWORD",
        "DB_PASS",
        "HF_TOKEN",
    }


def test_flags_and_words_of_a_command_line_are_checked() -> None:
    """Both spellings of a flag. A flag's value does not count for the next flag."""
    argv = (
        "python",
        "-m",
        "engine",
        "--api-key",
        "x",
        "--hf-token=y",
        "--max-num-batched-tokens",
        "8192",
        "--port",
        "1",
    )
    assert secret_arguments(argv) == {"--api-key": "its name says so", "--hf-token": "its name says so"}
    assert secret_arguments(("--enable-auth", "--tokenizer", "a/b", "--api-key")) == {}
    assert secret_arguments(("--proxy", "http://u:p@h.test")) == {"--proxy": "a URL with a password"}
    assert secret_arguments((f"hf_{TWENTY}",)) == {"an argument": "a Hugging Face token"}


def test_the_platforms_own_variables_are_excepted_only_inside_it() -> None:
    """Modal's own names pass in a Modal container. Modal credentials that a user sets are the user's."""
    inside = {
        "MODAL_TASK_ID": "ta-1",
        "MODAL_NEXT_YEARS_TOKEN": "x",
        "MODAL_TOKEN_SECRET": "x",
        "MODAL_IDENTITY_TOKEN": "x",
    }
    assert [name for name in inside if set_by_platform(name, inside)] == [
        "MODAL_TASK_ID",
        "MODAL_NEXT_YEARS_TOKEN",
        "MODAL_IDENTITY_TOKEN",
    ]
    assert secrets_in(inside) == {"MODAL_TOKEN_SECRET": "its name says so"}
    assert not set_by_platform("MODAL_NEXT_YEARS_TOKEN", {"MODAL_NEXT_YEARS_TOKEN": "x"})


@pytest.mark.fault("a variable of 128 KB is made to slow the search for secrets", area="secrets", outcome="held")
@pytest.mark.parametrize(
    "piece", ["a", "://a:", "://", "eyJ", "a1-", "sk-1", "bearer ", "login ", '"auth":', "=;pwd", "-----BEGIN A"]
)
def test_a_long_value_is_searched_in_little_time(piece: str) -> None:
    """The kernel allows 128 KB for a variable. Every shape takes linear time."""
    text = piece * (128 * 1024 // len(piece))
    began = time.process_time()
    secret_value(text)
    assert time.process_time() - began < 1.0
