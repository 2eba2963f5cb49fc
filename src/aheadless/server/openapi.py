"""The API's description of itself, with a schema for every body (protocol.md §1, §2, §4)."""

from __future__ import annotations

from typing import Any, Final

from aheadless._version import __version__
from aheadless.protocol.codec import MAX_MESSAGE_UNITS
from aheadless.server.answers import SECURITY_HEADERS, STRICT_TRANSPORT

__all__ = ["openapi_document"]

_JSON: Final = "application/json"
_TEXT: Final = {"type": "string"}
_COMMON_HEADERS: Final = (*SECURITY_HEADERS, "Vary", "Access-Control-Allow-Origin", "Strict-Transport-Security")
_MILLISECONDS: Final = {"type": "number", "description": "Milliseconds since 1970"}


def openapi_document() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "Headless chat API", "version": __version__, "license": {"name": "MIT", "identifier": "MIT"}},
        "paths": {
            "/v1/chat": {"post": _chat("chat", "Ask, and get the reply in one piece", _answer("The reply", "Reply"))},
            "/v1/chat/stream": {"post": _chat("chatStream", "Ask, and get the reply while it is written", _stream())},
            "/chat": {
                "post": {**_chat("chatStreamLegacy", "The old name of /v1/chat/stream", _stream()), "deprecated": True}
            },
            "/health": {
                "get": _get("health", "Whether the server is well", _answer("It is", "Health", "Cache-Control"))
            },
            "/v1/openapi.json": {
                "get": _get("openapi", "This document", _response("It", {_JSON: {"schema": {"type": "object"}}}))
            },
            "/v1/admin/conversations": {"get": _list_conversations()},
            "/v1/admin/conversations/{conversationId}": {"get": _read_conversation()},
        },
        "components": {
            "schemas": _schemas(),
            "headers": _headers(),
            "securitySchemes": {
                "chatKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                "legacyChatKey": {"type": "apiKey", "in": "header", "name": "x-widget-api-key"},
                "adminKey": {"type": "apiKey", "in": "header", "name": "x-admin-api-key"},
            },
        },
    }


def _chat(operation: str, summary: str, success: dict[str, Any]) -> dict[str, Any]:
    return {
        "operationId": operation,
        "summary": summary,
        "security": [{"chatKey": []}, {"legacyChatKey": []}],
        "requestBody": {"required": True, "content": {_JSON: {"schema": _ref("ChatRequest")}}},
        "responses": {
            "200": success,
            "400": _refusal("The body is no JSON (a page) or not a valid request (JSON)"),
            "401": _answer("The key is missing or wrong", "Error"),
            "408": _page("The body did not come to its end in 300 s"),
            "413": _page("The body has more than 2,097,152 bytes"),
            "415": _page("Another charset or content coding"),
            "429": _answer("Too many requests from this address", "Error"),
            "500": _refusal("The store or the model failed (JSON), or the Origin is not allowed (a page)"),
            "503": _answer("Too many replies are being written, or the server is stopping", "Error", "Retry-After"),
        },
    }


def _get(operation: str, summary: str, success: dict[str, Any]) -> dict[str, Any]:
    responses = {"200": success, "500": _page("The Origin is not allowed")}
    return {"operationId": operation, "summary": summary, "security": [], "responses": responses}


def _list_conversations() -> dict[str, Any]:
    limit = {"type": "integer", "minimum": 1, "maximum": 200, "default": 100}
    return {
        "operationId": "listConversations",
        "summary": "The newest conversations, the last updated first",
        "security": [{"adminKey": []}],
        "parameters": [{"name": "limit", "in": "query", "schema": limit}],
        "responses": {"200": _answer("The conversations", "ConversationPage"), **_admin_refusals()},
    }


def _read_conversation() -> dict[str, Any]:
    conversation_id = {"type": "string", "maxLength": 128}
    return {
        "operationId": "readConversation",
        "summary": "One conversation and its messages, the oldest first",
        "security": [{"adminKey": []}],
        "parameters": [{"name": "conversationId", "in": "path", "required": True, "schema": conversation_id}],
        "responses": {
            "200": _answer("The conversation", "Thread"),
            "404": _answer("There is none with this id", "Error"),
            **_admin_refusals(),
        },
    }


def _admin_refusals() -> dict[str, Any]:
    return {
        "400": _answer("A parameter is not valid", "Error"),
        "401": _answer("The admin key is missing or wrong", "Error"),
        "500": _refusal("The store failed (JSON), or the Origin is not allowed (a page)"),
        "503": _answer("This deployment has no admin key", "Error"),
    }


def _stream() -> dict[str, Any]:
    description = "One event a line, each line ended by a newline: start, tokens, then done or error"
    content = {"application/x-ndjson": {"schema": _ref("Event")}}
    return _response(description, content, "Cache-Control", "X-Accel-Buffering")


def _answer(description: str, schema: str, *headers: str) -> dict[str, Any]:
    return _response(description, {_JSON: {"schema": _ref(schema)}}, *headers)


def _page(description: str) -> dict[str, Any]:
    return _response(description, {"text/html": {"schema": _TEXT}})


def _refusal(description: str) -> dict[str, Any]:
    return _response(description, {_JSON: {"schema": _ref("Error")}, "text/html": {"schema": _TEXT}})


def _response(description: str, content: dict[str, Any], *headers: str) -> dict[str, Any]:
    names = (*_COMMON_HEADERS, *headers)
    return {
        "description": description,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names},
        "content": content,
    }


def _headers() -> dict[str, Any]:
    always = {name: {"required": True, "schema": {"const": value}} for name, value in SECURITY_HEADERS.items()}
    return {
        **always,
        "Vary": {"required": True, "schema": {"const": "Origin"}},
        "Access-Control-Allow-Origin": {"description": "The request's Origin, if it is allowed", "schema": _TEXT},
        "Strict-Transport-Security": {"description": "In production", "schema": {"const": STRICT_TRANSPORT}},
        "Cache-Control": {"required": True, "schema": _TEXT},
        "X-Accel-Buffering": {"required": True, "schema": {"const": "no"}},
        "Retry-After": {"description": "Seconds", "schema": {"type": "integer"}},
    }


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: dict[str, Any], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def _event(kind: str, *texts: str) -> dict[str, Any]:
    return _object({"type": {"const": kind}, **dict.fromkeys(texts, _TEXT)})


def _schemas() -> dict[str, Any]:
    kinds = {"start": "StartEvent", "token": "TokenEvent", "done": "DoneEvent", "error": "ErrorEvent"}
    return {
        "ChatRequest": _object(
            {
                "sessionId": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
                "message": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": MAX_MESSAGE_UNITS,
                    "description": "Counted in UTF-16 units, as JavaScript does",
                },
            }
        ),
        "Reply": _object({"conversationId": _TEXT, "message": _TEXT}),
        "Event": {
            "oneOf": [_ref(name) for name in kinds.values()],
            "discriminator": {
                "propertyName": "type",
                "mapping": {kind: f"#/components/schemas/{name}" for kind, name in kinds.items()},
            },
        },
        "StartEvent": _event("start", "conversationId"),
        "TokenEvent": _event("token", "token"),
        "DoneEvent": _event("done", "message", "conversationId"),
        "ErrorEvent": _event("error", "error"),
        "Error": _object({"error": _TEXT, "details": _TEXT}, optional=("details",)),
        "Health": _object({"status": {"const": "ok"}}),
        "Conversation": _object(
            {
                "_id": {"type": "string", "pattern": "^[a-z0-9]{32}$"},
                "_creationTime": _MILLISECONDS,
                "sessionId": _TEXT,
                "createdAt": _MILLISECONDS,
                "updatedAt": _MILLISECONDS,
                "lastMessage": {"type": "string", "description": "The first 500 UTF-16 units of the newest message"},
            }
        ),
        "Message": _object(
            {
                "_id": {"type": "string", "pattern": "^[a-z0-9]{32}$"},
                "_creationTime": _MILLISECONDS,
                "conversationId": _TEXT,
                "role": {"enum": ["user", "assistant"]},
                "content": _TEXT,
                "createdAt": _MILLISECONDS,
            }
        ),
        "ConversationPage": _object(
            {"conversations": {"type": "array", "items": _ref("Conversation")}, "total": {"type": "integer"}}
        ),
        "Thread": _object(
            {"conversation": _ref("Conversation"), "messages": {"type": "array", "items": _ref("Message")}}
        ),
    }
