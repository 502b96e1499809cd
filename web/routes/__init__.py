"""One module per API family, each with its `routes`; TABLE is all of them."""

from web.routes import aliases, dashboard, docs, generic, health, kserve, openai, scores, tei, text, tokens

_FAMILIES = (tei, scores, tokens, text, openai, generic, kserve, aliases, health, docs, dashboard)
TABLE = tuple(route for family in _FAMILIES for route in family.routes.table)
