"""The steps that lift old data to the newest schema. None yet: every released type has schema 1."""

from eventstore.upcast import Upcasters

UPCASTERS: Upcasters = {}
