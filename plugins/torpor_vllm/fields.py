"""The allowed fields of a public request to vLLM: a decision for every field in every supported version.

A test compares the lists with the real models (`ChatCompletionRequest`, `CompletionRequest` of entrypoints/openai). A field that
no list names is new: add it to `plain`, `bounded` or `refused`, with what its code does as the reason.
"""

from __future__ import annotations

from torpor.launcher import RequestFields

__all__ = ["FIELDS"]

FIELDS = RequestFields(
    plain=(
        "add_generation_prompt",
        "add_special_tokens",
        "cache_salt",
        "continue_final_message",
        "documents",
        "echo",
        "frequency_penalty",
        "ignore_eos",
        "include_reasoning",
        "include_stop_str_in_output",
        "length_penalty",
        "max_completion_tokens",
        "max_tokens",
        "min_p",
        "min_tokens",
        "model",
        "parallel_tool_calls",
        "presence_penalty",
        "reasoning_effort",
        "repetition_detection",
        "repetition_penalty",
        "return_prompt_text",
        "return_token_ids",
        "return_token_offsets",
        "return_tokens_as_token_ids",
        "return_weight_versions",
        "seed",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "stream",
        "stream_interval",
        "stream_options",
        "suffix",
        "temperature",
        "thinking_token_budget",
        "tool_choice",
        "top_k",
        "top_p",
        "truncate_prompt_tokens",
        "truncation_side",
        "use_beam_search",  # its width is n, which is bounded
        "user",
    ),
    bounded=(
        # Grammars: compiled beside the batch, for as long as it takes; see the table of parameters in SECURITY.md.
        "response_format",
        "structured_outputs",
        "tools",
        "allowed_token_ids",
        "bad_words",
        "chat_template_kwargs",
        "logit_bias",
        "logprob_token_ids",
        "logprobs",
        "messages",
        "n",
        "prompt",
        "prompt_logprobs",
        "stop",
        "stop_token_ids",
        "top_logprobs",
    ),
    refused=(
        ("a template is code that the server would run", ("chat_template",)),
        ("tensors of the caller's are not checked by anybody", ("mm_payload", "prompt_embeds")),
        (
            "it names servers that the engine would talk to",
            ("ec_transfer_params", "kv_transfer_params"),
        ),
        ("it goes to the engine's extensions as it is", ("vllm_xargs",)),
        ("ids of requests and sessions are the server's", ("request_id", "session_id")),
        ("it overtakes other callers", ("priority",)),
        ("it changes how much memory media takes", ("media_io_kwargs", "mm_processor_kwargs")),
        ("it hands out the model's inner state", ("return_mm_kwargs", "routed_experts_prompt_start")),
        ("a watermark is the server's", ("watermarking",)),
    ),
    plain_headers=(
        "x-anthropic-billing-header",  # of a dialect whose routes are closed
        "x-request-id",  # proxies set it; the engine adds letters of its own (VLLM_DISABLE_REQUEST_ID_RANDOMIZATION is refused)
    ),
    refused_headers=(
        ("it names a rank that the engine would talk to", ("x-data-parallel-rank",)),
        ("it overtakes other callers", ("x-vllm-priority",)),
        ("sessions are the server's", ("x-session-id",)),
    ),
)
