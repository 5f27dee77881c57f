"""What a record is: values of JSON under typed names, read from files of this version and of earlier ones."""

from collections.abc import Iterator, Mapping
from typing import Any, Self

import msgspec

from nonlin.errors import UserError


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Typed values of JSON: ``record.name`` and ``record["name"]`` are the same value.

    A file may hold more than a record names, as later versions add fields: what is not named is left out. Numbers
    stay as they were written.
    """

    def __getitem__(self, name: str) -> Any:
        if name in self.__struct_fields__:
            return getattr(self, name)
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return name in self.__struct_fields__

    def __iter__(self) -> Iterator[str]:
        return iter(self.__struct_fields__)

    def keys(self) -> tuple[str, ...]:
        """Return the names, so that ``dict(record)`` works."""
        return self.__struct_fields__

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of that name, or ``default`` where the record has no such name."""
        return getattr(self, name) if name in self.__struct_fields__ else default

    def as_dict(self) -> dict[str, Any]:
        """Return plain values of JSON: dictionaries, lists, numbers, texts and None."""
        return msgspec.to_builtins(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "the record") -> Self:
        """Return the record that these values of JSON make; UserError, naming ``source``, where they make none."""
        try:
            return msgspec.convert(values, cls)
        except (msgspec.ValidationError, ValueError, OverflowError) as error:
            raise UserError(f"{source} must be a record of nonlin ({cls.__name__}); {error}. "
                            "Restore the file, or have it written again by the command that made it.") from error
