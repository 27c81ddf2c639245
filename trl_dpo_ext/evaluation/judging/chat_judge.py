"""Judges behind an endpoint that speaks the OpenAI chat protocol: OpenAI, vLLM, SGLang, `transformers serve`, ..."""

import json
import threading
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import InferenceClient, get_session
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError

from trl_dpo_ext.evaluation.judging.comparisons import Comparison, text_of_prompt
from trl_dpo_ext.evaluation.judging.judge_prompts import JudgePrompt
from trl_dpo_ext.evaluation.judging.judges import Answer, AskingStopped, RequestLimitReached, shown
from trl_dpo_ext.evaluation.judging.verdicts import RaterIdentity
from trl_dpo_ext.processes import get_logger


__all__ = ["PARAMETERS", "ChatJudge"]

logger = get_logger(__name__)

PARAMETERS: Mapping[str, Any] = {"temperature": 0, "max_tokens": 1024}

# Statuses after which the same request may succeed, and those after which no request will
_TEMPORARY = (408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529)
_FINAL = {
    401: "The key is missing or wrong.",
    402: "The account cannot pay.",
    403: "The key does not allow it.",
    404: "There is no such model, or the address is not that of an API.",
    405: "The address is not that of an API.",
}
_FIRST_WAIT, _LONGEST_WAIT, _LONGEST_RETRY_AFTER = 0.5, 60, 600


class _Temporary(Exception):
    """An attempt failed, and another may succeed, after `retry_after` seconds if the server says so."""

    def __init__(self, message: str, retry_after: float | None = None):
        super().__init__(message)
        self.retry_after = retry_after


class ChatJudge:
    """
    A judge behind an endpoint that speaks the OpenAI chat protocol.

    Every question is a chat of one message. Too many requests (429, also with `Retry-After`), errors of the server,
    timeouts, and responses that are no chat completion are tried again, with growing random waits. An answer is never
    asked for again because of what it says.

    Args:
        url (`str`):
            Address of the API, such as `"http://localhost:8000/v1"`.
        model (`str`):
            Name of the model there.
        judge_prompt ([`JudgePrompt`]):
            What is asked.
        api_key (`str`, *optional*):
            Key. It is sent to the endpoint, and is in no file, log or error.
        rater (`str`, *optional*):
            Name of the judge. Default: model and name of the prompt.
        parameters (`Mapping[str, Any]`, *optional*):
            Options of the request, in addition to temperature 0 and 1,024 tokens. `None` removes one.
        timeout (`float`, *optional*, defaults to `120`):
            Seconds without a byte of the response after which a request has failed.
        max_retries (`int`, *optional*, defaults to `5`):
            Number of further attempts.
        max_requests (`int`, *optional*):
            Number of requests that may be sent, attempts that failed included. Default: no limit.

    Raises:
        ImportError: Without tenacity.
        ValueError: If the address is no `http` or `https` URL.
    """

    def __init__(
        self,
        url: str,
        model: str,
        judge_prompt: JudgePrompt,
        *,
        api_key: str | None = None,
        rater: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        timeout: float = 120,
        max_retries: int = 5,
        max_requests: int | None = None,
    ):
        try:
            import tenacity
        except ImportError as error:
            raise ImportError('Judges need tenacity: pip install "trl-dpo-ext[evaluate]"') from error
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise ValueError(f"The address of the judge {url!r} is no URL. Pass one such as http://localhost:8000/v1.")
        self.url = url
        self.judge_prompt = judge_prompt
        merged = {**PARAMETERS, **(parameters or {})}
        self.identity = RaterIdentity(
            rater=rater or f"{model} ({judge_prompt.name})",
            kind="judge",
            judge_prompt=judge_prompt.name,
            judge_prompt_hash=judge_prompt.hash,
            model=model,
            parameters={name: value for name, value in merged.items() if value is not None},
        )
        self.num_requests = 0
        self._model = model
        self._api_key = api_key
        self._max_requests = max_requests
        # Without a key the client would send the user's token of the hub
        self._client = InferenceClient(base_url=url, api_key=api_key or "none", timeout=timeout)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._has_answered = False
        self._retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(max_retries + 1) | tenacity.stop_when_event_set(self._stopped),
            wait=_Wait(tenacity.wait_random_exponential(multiplier=_FIRST_WAIT, max=_LONGEST_WAIT)),
            retry=tenacity.retry_if_exception_type(_Temporary),
            sleep=tenacity.sleep_using_event(self._stopped),
            reraise=True,
        )
        _allow_offline(url)

    def question(self, comparison: Comparison, order: str) -> str:
        """Returns the message that is sent."""
        return self.judge_prompt.question(text_of_prompt(comparison.prompt), *shown(comparison, order))

    def ask(self, comparison: Comparison, order: str) -> Answer:
        """
        Asks for an answer.

        Raises:
            AskingStopped: If the endpoint cannot be reached, refuses the key or does not know the model, or the number
                of requests is reached.
        """
        messages = [{"role": "user", "content": self.question(comparison, order)}]
        try:
            return self._retrying.copy()(self._attempt, messages)
        except _Temporary as error:
            if self._stopped.is_set():  # it may have had other attempts
                raise AskingStopped(str(error)) from error
            return Answer(None, str(error))

    def stop(self) -> None:
        """Ends the waits for another attempt. What was sent is still waited for."""
        self._stopped.set()

    def _attempt(self, messages: list[dict[str, str]]) -> Answer:
        with self._lock:
            if self._max_requests is not None and self.num_requests >= self._max_requests:
                raise RequestLimitReached(f"{self.num_requests} requests were sent, as many as are allowed")
            self.num_requests += 1
        try:
            response = self._client.chat_completion(
                messages, model=self._model, extra_body=dict(self.identity.parameters)
            )
        except HfHubHTTPError as error:
            return self._refused(error)
        except InferenceTimeoutError as error:
            raise _Temporary(f"no response within {self._client.timeout:g} s") from error
        except json.JSONDecodeError as error:
            raise _Temporary(f"the response is no JSON: {self._hidden(error.doc)[:200]!r}") from error
        except Exception as error:  # of the connection, or of a response of another form
            return self._broken(error)
        if not response.choices or response.choices[0].message is None:
            raise _Temporary("the response has no `choices`")
        self._has_answered = True
        return Answer(self._hidden(response.choices[0].message.content or ""))

    def _refused(self, error: HfHubHTTPError) -> Answer:
        status = error.response.status_code
        said = self._hidden(_said(error))[:300].rstrip(".")
        message = f"status {status}" + (f": {said}" if said else "")
        if status in _FINAL:
            raise AskingStopped(f"{self.url} answers with {message}. {_FINAL[status]}") from None
        if status not in _TEMPORARY:
            return Answer(None, message)
        retry_after = _seconds(error.response.headers.get("Retry-After"))
        if retry_after is not None and retry_after > _LONGEST_RETRY_AFTER:
            raise AskingStopped(f"{self.url} asks to wait {retry_after:.0f} s ({message})") from None
        raise _Temporary(message, retry_after) from None

    def _broken(self, error: Exception) -> Answer:
        message = self._hidden(f"{type(error).__name__}: {error}")
        if "Connect" in type(error).__name__ and not self._has_answered:
            raise AskingStopped(f"{self.url} cannot be reached ({message}). Is the address right?") from None
        raise _Temporary(message) from None

    def _hidden(self, text: str) -> str:
        """A text of the server, without the key."""
        return text.replace(self._api_key, "***") if self._api_key else text


class _Wait:
    """Waits as long as the server asks for, else as `otherwise` says."""

    def __init__(self, otherwise: Any):
        self._otherwise = otherwise

    def __call__(self, retry_state: Any) -> float:
        retry_after = retry_state.outcome.exception().retry_after
        if retry_after is None:
            return float(self._otherwise(retry_state))
        if retry_after > 5:
            logger.warning(f"The judge asks to wait {retry_after:.0f} s.")
        return float(retry_after)


def _seconds(retry_after: str | None) -> float | None:
    """`Retry-After` is a number of seconds or a date."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return None


def _said(error: HfHubHTTPError) -> str:
    """What the server says of an error: `error.message` of the protocol, or the text of its response."""
    try:
        text = str(error.response.text)
    except Exception:  # it was not read
        return error.server_message or ""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return text.strip()


def _allow_offline(url: str) -> None:
    """Lets requests to this address through under `HF_HUB_OFFLINE`, which is about the hub."""
    session = get_session()
    hooks = session.event_hooks
    session.event_hooks = {**hooks, "request": [partial(_unless, url, hook) for hook in hooks["request"]]}


def _unless(url: str, hook: Any, request: Any) -> None:
    if not str(request.url).startswith(url):
        hook(request)
