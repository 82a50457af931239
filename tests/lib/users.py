"""The users of deploy/rabbitmq, in a virtual host of a test."""

import json
from pathlib import Path
from typing import Final
from urllib.parse import quote

from tests.lib.bundle import Bundle

FOLDER: Final = Path(__file__).resolve().parents[2] / "deploy/rabbitmq"


PASSWORD: Final = "a-password-of-the-test"


class Users:
    """The users in the bundle's virtual host, under names of their own; by default it is set up in full."""

    def __init__(self, bundle: Bundle, *, topology: bool = True, folder: Path = FOLDER) -> None:
        self._bundle = bundle
        files = ("definitions.json", "users.json") if topology else ("users.json",)
        for file in files:
            definitions = json.loads((folder / file).read_text())
            for thing in (thing for things in definitions.values() for thing in things):
                if "vhost" in thing:
                    thing["vhost"] = bundle.vhost
                if "user" in thing:
                    thing["user"] = self._name(thing["user"])
            for user in definitions.get("users", []):
                user["name"] = self._name(user["name"])
            definitions["vhosts"] = [{"name": bundle.vhost}]
            bundle.management("POST", "definitions", definitions)

    def give_passwords(self) -> "Users":
        """What `rabbitmqctl change_password` does, in a hundredth of its time."""
        for user in json.loads((FOLDER / "users.json").read_text())["users"]:
            body = {"password": PASSWORD, "tags": ",".join(user["tags"])}
            self._bundle.management("PUT", f"users/{self._name(user['name'])}", body)
        return self

    def url(self, user: str, password: str = PASSWORD) -> str:
        host = f"127.0.0.1:{self._bundle.node.info.port}"
        return f"amqp://{self._name(user)}:{password}@{host}/{quote(self._bundle.vhost, safe='')}"

    def env(self, user: str) -> dict[str, str]:
        return {"CELERY_BROKER_URL": self.url(user)}

    def _name(self, user: str) -> str:
        return f"{user}-{self._bundle.vhost}"
