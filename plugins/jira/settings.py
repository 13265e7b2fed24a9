"""The section [plugins.jira]."""

import re
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

PROJECT_KEY = r"[A-Z][A-Z0-9]{1,9}"


class KnowledgeSettings(BaseModel):
    """The section [plugins.jira.kb]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = Field(True, description="whether comments of Jira issues help the AI")
    max_issues: int = Field(60, ge=1, le=1000, description="how many issues, the newest first")
    max_comments_per_issue: int = Field(5, ge=1, le=100, description="how many, the latest")
    top_matches: int = Field(5, ge=1, le=50, description="how many reach a prompt")
    cache_seconds: int = Field(300, ge=1, description="how long they are remembered")


Word = Literal["jira", "itdesk", "last_writer"]


class PushSettings(BaseModel):
    """The section [plugins.jira.push]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = Field(True, description="whether changes of mirrored tickets go to Jira")
    internal_comments: bool = Field(
        False, description="whether internal comments go there too, as internal ones of JSM"
    )
    attempts: int = Field(8, ge=1, le=50, description="how often Jira may fail at one change")
    settle_seconds: float = Field(
        60.0, ge=0, description="how long Jira's search may not find what was just opened"
    )


class PolicySettings(BaseModel):
    """The section [plugins.jira.policy], or one of [plugins.jira.policies]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    default: Word | None = Field(None, description="whose word counts where no other line says so")
    title: Word | None = None
    description: Word | None = None
    status: Word | None = None
    priority: Word | None = None
    tags: Word | None = None
    assignee: Word | None = None

    def of(self, name: str) -> Word | None:
        """Return whose word counts about a field, if this section says so."""
        own: Word | None = getattr(self, name, None)
        return own or self.default


class JiraSettings(BaseModel):
    """The section [plugins.jira]; without `base_url` it only listens to webhooks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_url: str = Field("", description="where Jira is, with its context path if it has one")
    dialect: Literal["auto", "cloud", "datacenter"] = Field(
        "auto", description="REST version 3 or 2; auto asks Jira which of the two it is"
    )
    email: str = Field("", description="the account's address; empty: api_token is a PAT")
    api_token: SecretStr = Field(SecretStr(""), description="API token, password or PAT")
    ca_file: Path | None = Field(None, description="certificates that sign Jira's, as PEM")
    project_key: str = Field("", description="the one project to mirror; empty: all it may see")
    service_desk_id: str = Field("", description="the JSM service desk that imports go through")
    sync_page_size: int = Field(50, ge=1, le=100, description="issues per request")
    webhook_secret: SecretStr = Field(SecretStr(""), description="what webhooks are signed with")
    connect_seconds: float = Field(5.0, gt=0, description="how long connecting may take")
    request_seconds: float = Field(15.0, gt=0, description="how long one request may take")
    probe_seconds: float = Field(60.0, gt=0, description="pause after Jira refused the account")
    breaker_failures: int = Field(
        5, ge=1, le=5, description="after so many failures in a row Jira is left alone"
    )
    breaker_seconds: float = Field(15.0, gt=0, description="for how long, until one may try")
    push: PushSettings = Field(default_factory=PushSettings)
    policy: PolicySettings = Field(default_factory=PolicySettings)
    policies: dict[str, PolicySettings] = Field(
        default_factory=dict, description="what is different in a project, by its key"
    )
    kb: KnowledgeSettings = Field(default_factory=KnowledgeSettings)

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if not value:
            return value
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise ValueError("must be an address such as https://example.atlassian.net")
        if parts.username or parts.password:
            raise ValueError("must not hold the account: use email and api_token")
        return value.rstrip("/")

    @field_validator("project_key")
    @classmethod
    def _is_a_key(cls, value: str) -> str:
        if value and not re.fullmatch(PROJECT_KEY, value):
            raise ValueError("must be the key of a project, such as ITSM")
        return value

    @field_validator("policies")
    @classmethod
    def _are_keys(cls, value: dict[str, PolicySettings]) -> dict[str, PolicySettings]:
        for key in value:
            if not re.fullmatch(PROJECT_KEY, key):
                raise ValueError(f"{key} is no key of a project, such as ITSM")
        return value

    def word(self, project: str, name: str) -> Word:
        """Return whose word counts about a field of a project's issues."""
        own = self.policies.get(project)
        return (own.of(name) if own else None) or self.policy.of(name) or "jira"

    @property
    def connected(self) -> bool:
        """Return whether Jira can be asked, and not only listened to."""
        return bool(self.base_url and self.api_token.get_secret_value())
