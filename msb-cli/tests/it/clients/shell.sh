# Run in the guest: the port of the server that plays all hosts, and that of a proxy.
port=$1
proxy=http://192.168.127.1:$2
base=https://api.openai.com:$port
bearer="Authorization: Bearer $OPENAI_API_KEY"

# Counts the lines that hold the placeholder.
echoed() { grep -c -F -e "$OPENAI_API_KEY"; }

for version in 1.1 2; do
    echo curl "$(curl -sS --http$version -w '%{stderr}%{http_version}' -H "$bearer" $base/echo 2>/tmp/version | echoed)" "$(cat /tmp/version)"
done
echo curl-basic "$(curl -sS -u "user:$OPENAI_API_KEY" $base/echo | echoed)"
echo curl-gzip "$(curl -sS --compressed -H "$bearer" $base/gzip | echoed)"
echo curl-gzip-raw "$(curl -sS -H 'Accept-Encoding: gzip' -H "$bearer" $base/gzip | echoed)"
echo curl-error "$(curl -sS -w '%{stderr}%{http_code}' -H "$bearer" $base/error 2>/tmp/code | echoed)" "$(cat /tmp/code)"
echo curl-cookie "$(curl -sS -c - -o /dev/null -H "$bearer" $base/echo | echoed)"
# The client sends its credential on to the other host, and what that one gets is worth nothing.
# Nobody reads that connection, and the guest trusts nobody who vouches for it.
echo curl-redirect "$(curl -sSk --location-trusted -H "$bearer" -o /dev/null -w '%{http_code} %{url_effective}' $base/redirect | echoed)"
echo curl-proxy "$(curl -sS -x "$proxy" -H "$bearer" $base/echo | echoed)"
git clone -q "https://user:$GIT_TOKEN@git.example:$port/repo.git" /tmp/repo && echo git "$(cat /tmp/repo/file)"
