# Run in the guest: the port of the server that plays all hosts, and that of a proxy.
import os
import sys

port = sys.argv[1]
key = os.environ["OPENAI_API_KEY"]
base = f"https://api.openai.com:{port}"
bearer = {"Authorization": f"Bearer {key}"}


def say(client, *what):
    print(client, *what, flush=True)


import requests

answer = requests.get(f"{base}/echo", headers=bearer)
say("requests", answer.status_code, key in answer.text, answer.headers["x-echo"] == key)
answer = requests.get(f"{base}/echo", auth=("user", key))
say("requests-basic", answer.status_code, key in answer.text)
proxies = {"https": f"http://192.168.127.1:{sys.argv[2]}"}
answer = requests.get(f"{base}/echo", headers=bearer, proxies=proxies)
say("requests-proxy", answer.status_code, key in answer.text)

import httpx

for http2 in (False, True):
    with httpx.Client(http2=http2) as client:
        answer = client.get(f"{base}/echo", headers=bearer)
        say("httpx", answer.http_version, answer.status_code, key in answer.text)

acknowledger = httpx.Client()


def acknowledge(host):
    acknowledger.get(f"https://{host}:{port}/acknowledge")


from openai import OpenAI

client = OpenAI(base_url=f"{base}/v1")
messages = [{"role": "user", "content": "who am I"}]
answer = client.chat.completions.create(model="m", messages=messages)
say("openai", answer.choices[0].message.content == f"you are {key}")
tokens = []
for chunk in client.chat.completions.create(model="m", messages=messages, stream=True):
    tokens.append(chunk.choices[0].delta.content)
    acknowledge("api.openai.com")
say("openai-stream", len(tokens), "".join(tokens))

from anthropic import Anthropic

client = Anthropic(base_url=f"https://api.anthropic.com:{port}")
own = os.environ["ANTHROPIC_API_KEY"]
answer = client.messages.create(model="m", max_tokens=9, messages=messages)
say("anthropic", answer.content[0].text == f"you are {own}")
tokens = []
with client.messages.stream(model="m", max_tokens=9, messages=messages) as stream:
    for token in stream.text_stream:
        tokens.append(token)
        acknowledge("api.anthropic.com")
say("anthropic-stream", len(tokens), "".join(tokens))

import grpc

with grpc.secure_channel(f"api.openai.com:{port}", grpc.ssl_channel_credentials()) as channel:
    call = channel.unary_stream("/echo.Echo/Say")(
        b"hello", metadata=[("authorization", f"Bearer {key}")]
    )
    messages = [message.decode() for message in call]
    trailers = dict(call.trailing_metadata())
    # What has its length in front of it keeps that length.
    say("grpc", set(messages[0]), messages[1:], trailers["x-trailer"] == key)

from websockets.sync.client import connect

with connect(f"wss://api.openai.com:{port}/ws", additional_headers=bearer) as socket:
    first = socket.recv()
    socket.send("hello")
    say("websocket", len(first), socket.recv())
