# Run in the guest: a port, and how many connections.
import http.client
import os
import sys
import threading

port, count = map(int, sys.argv[1:])
bearer = {"Authorization": "Bearer " + os.environ["TOKEN"]}
turn = threading.Barrier(count + 1)
statuses = [[] for _ in range(count)]


def ask(connection, seen):
    connection.request("GET", "/accepted", headers=bearer)
    answer = connection.getresponse()
    answer.read()
    seen.append(answer.status)


def work(seen):
    connection = http.client.HTTPSConnection("a.example", port)
    ask(connection, seen)
    turn.wait()
    turn.wait()
    # The first is told that its credential is not good any more, and comes again.
    while seen[-1] != 200 or len(seen) == 1:
        ask(connection, seen)


threads = [threading.Thread(target=work, args=[seen]) for seen in statuses]
for thread in threads:
    thread.start()
turn.wait()
print("all", flush=True)
sys.stdin.readline()
turn.wait()
for thread in threads:
    thread.join()
for seen in statuses:
    print(*seen, flush=True)
