#!/bin/sh
# Publish a text to task_queue over the management API, which answers whether a queue has it.
# For a message now and then: each takes a request. Needs curl. Usage: ./send.sh First message.
set -eu
[ $# -gt 0 ] || { echo "Usage: ./send.sh First message." >&2; exit 2; }
: "${MANAGEMENT_URL:=http://guest:guest@localhost:15672}" "${VHOST:=%2F}"
text=$(printf '%s' "$*" | sed 's/["\\]/\\&/g')
answer=$(curl --silent --show-error --fail --json @- "$MANAGEMENT_URL/api/exchanges/$VHOST/amq.default/publish" <<JSON
{"routing_key": "task_queue", "payload": "$text", "payload_encoding": "string",
 "properties": {"message_id": "$(date +%s)-$$", "content_type": "text/plain", "delivery_mode": 2}}
JSON
)
[ "$answer" = '{"routed":true}' ] || { echo "not sent: is there a queue task_queue? $answer" >&2; exit 1; }
echo "sent $text"
