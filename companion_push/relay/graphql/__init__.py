"""The relay's second shell: the same operations over GraphQL at ``/graphql`` (docs/protocol/relay.md, GraphQL).

`schema` names the operations, `documents` admits what callers send, `shell` answers HTTP requests, and `subscriptions`
speaks graphql-transport-ws. Needs the extra ``graphql``.
"""
