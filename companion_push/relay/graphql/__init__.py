"""The relay's second shell: the same operations over GraphQL at ``/graphql`` (docs/protocol/relay.md, GraphQL).

`schema` names the operations, `documents` admits what callers send, `shell` answers HTTP requests, `subscriptions`
speaks graphql-transport-ws, and `errors` are problems. Needs the extra ``graphql``.
"""
