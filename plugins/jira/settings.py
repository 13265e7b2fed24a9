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

    @property
    def connected(self) -> bool:
        """Return whether Jira can be asked, and not only listened to."""
        return bool(self.base_url and self.api_token.get_secret_value())
