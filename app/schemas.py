"""The bodies of requests and responses."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    EmailStr,
    Field,
    StringConstraints,
    model_validator,
)

from app.books_csv import MAX_AUTHOR, MAX_TITLE, YEARS
from app.isbn import isbn13
from app.text import tidy


def _is_a_year(year: int) -> int:
    if year == 0:
        raise ValueError("there was no year 0")
    return year


# Normalised, one letter may become two: the length is checked before and after that.
Title = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_TITLE),
    AfterValidator(tidy),
    Field(max_length=MAX_TITLE, examples=["The Left Hand of Darkness"]),
]
Author = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_AUTHOR),
    AfterValidator(tidy),
    Field(max_length=MAX_AUTHOR, examples=["Ursula K. Le Guin"]),
]
Year = Annotated[
    int,
    Field(ge=YEARS[0], le=YEARS[-1], description="Of the first publication; negative: BC", examples=[1969]),
    AfterValidator(_is_a_year),
]
ISBN = Annotated[
    str,
    StringConstraints(max_length=40),
    AfterValidator(isbn13),
    Field(description="ISBN-13 or ISBN-10, hyphens allowed; kept as 13 digits", examples=["978-0-441-47812-5"]),
]
Name = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=100),
    AfterValidator(tidy),
    Field(max_length=100, examples=["Ada Lovelace"]),
]
Email = Annotated[EmailStr, Field(examples=["ada@example.org"])]
NewPassword = Annotated[str, Field(min_length=8, max_length=200, examples=["correct horse battery staple"])]


class _Changes(BaseModel):
    """Only the fields that are given are changed."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _something_is_given(cls, values: Any) -> Any:
        if values == {}:
            raise ValueError("give at least one field to change")
        return values


class BookCreate(BaseModel):
    """A book to add."""

    model_config = ConfigDict(extra="forbid")

    title: Title
    author: Author
    year: Year | None = None
    isbn: ISBN | None = None


class BookUpdate(_Changes):
    """What to change about a book. `null` removes the year or the ISBN."""

    title: Title = ""
    author: Author = ""
    year: Year | None = None
    isbn: ISBN | None = None


class BookRead(BaseModel):
    """A book."""

    model_config = ConfigDict(from_attributes=True)

    id: int = Field(examples=[42])
    title: str = Field(examples=["The Left Hand of Darkness"])
    author: str = Field(examples=["Ursula K. Le Guin"])
    year: int | None = Field(examples=[1969])
    isbn: str | None = Field(examples=["9780441478125"])


class BookPage(BaseModel):
    """A page of matching books, and how many there are in all."""

    items: list[BookRead]
    total: int = Field(examples=[312])
    limit: int
    offset: int


class UserCreate(BaseModel):
    """A user who registers."""

    model_config = ConfigDict(extra="forbid")

    email: Email
    name: Name
    password: NewPassword


class UserUpdate(_Changes):
    """What to change about oneself. A new password ends all other sessions."""

    email: Email = ""
    name: Name = ""
    password: NewPassword = ""


class UserRead(BaseModel):
    """What everybody may know about a user."""

    model_config = ConfigDict(from_attributes=True)

    id: int = Field(examples=[7])
    name: str = Field(examples=["Ada Lovelace"])
    created_at: datetime


class Account(UserRead):
    """What users see about themselves."""

    email: str = Field(examples=["ada@example.org"])


class Registered(Account):
    """A new account."""

    welcome_email: Literal["queued", "delayed"] = Field(
        description="`delayed`: the queue did not take the welcome e-mail; the account is fine."
    )


class Credentials(BaseModel):
    """What a user logs in with."""

    email: Annotated[str, Field(max_length=320, examples=["ada@example.org"]), AfterValidator(tidy)]
    password: Annotated[str, Field(max_length=200, examples=["correct horse battery staple"])]


class SessionOpened(BaseModel):
    """A session. Browsers use the cookie that came with it, programs send `Authorization: Bearer <token>`."""

    token: str
    expires_in: float = Field(description="Seconds without a request after which it ends", examples=[604800])
    user: Account


class Health(BaseModel):
    """The state of each part."""

    status: Literal["ok", "degraded", "down"] = Field(
        description="`degraded`: reads work, but slower or without jobs; `down`: the database does not answer"
    )
    database: str = Field(examples=["ok"])
    cache: str = Field(examples=["ok"])
    queue: str = Field(examples=["ok"])


class Problem(BaseModel):
    """What is wrong, in the shape of RFC 9457. All errors look like this."""

    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["There is no book 42."])
    errors: list[dict[str, Any]] | None = Field(None, description="For 422: what is wrong where in the request")
