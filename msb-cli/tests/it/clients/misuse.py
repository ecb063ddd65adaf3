# Run in the guest: ports of the servers, and an authority that is not the sandbox's.
import os
import socket
import ssl
import sys

import h2.connection
import h2.events

named, other, stranger = map(int, sys.argv[1:4])
with open("/tmp/outside.pem", "w") as file:
    file.write(sys.argv[4])
key = os.environ["TOKEN"]
GATEWAY = "192.168.127.1"


def tls(port, host, context=None, protocol="http/1.1"):
    context = context or ssl.create_default_context()
    context.set_alpn_protocols([protocol])
    # Whatever address a resolver that is the guest's own would give.
    return context.wrap_socket(socket.create_connection((GATEWAY, port)), server_hostname=host)


def ask(stream, host):
    head = f"GET /echo HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n\r\n"
    stream.sendall(head.encode())
    return stream.recv(4096).split()[1].decode()


def coalesced():
    stream = tls(named, "a.example", protocol="h2")
    connection = h2.connection.H2Connection()
    connection.initiate_connection()
    for number, host in ((1, "a.example"), (3, "b.example")):
        fields = [(":method", "GET"), (":scheme", "https"), (":authority", host), (":path", "/echo")]
        connection.send_headers(number, [*fields, ("authorization", f"Bearer {key}")], end_stream=True)
    stream.sendall(connection.data_to_send())
    statuses = {}
    while len(statuses) < 2:
        for event in connection.receive_data(stream.recv(65536)):
            if isinstance(event, h2.events.ResponseReceived):
                value = dict(event.headers)
                value = value.get(b":status") or value.get(":status")
                statuses[event.stream_id] = value if isinstance(value, str) else value.decode()
    return statuses[1], statuses[3]


def attempt(what, work):
    try:
        print(what, work(), flush=True)
    except ssl.SSLCertVerificationError as error:
        print(what, "not verified", flush=True)
    except ssl.SSLError as error:
        print(what, error.reason, flush=True)


own = ssl.create_default_context(cafile="/tmp/outside.pem")
anybody = ssl._create_unverified_context()
attempt("right", lambda: ask(tls(named, "a.example"), "a.example"))
attempt("another Host", lambda: ask(tls(named, "a.example"), "b.example"))
attempt("another name", lambda: ask(tls(named, "b.example", anybody), "a.example"))
attempt("another server", lambda: ask(tls(other, "a.example"), "a.example"))
attempt("a stranger", lambda: ask(tls(stranger, "a.example"), "a.example"))
attempt("pinned", lambda: ask(tls(named, "a.example", own), "a.example"))
attempt("coalesced", coalesced)
print("token", key, flush=True)
