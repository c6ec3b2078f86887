-- An action for HAProxy: `http-request lua.keystore PATH` asks `keystore serve` whether a request
-- may pass. If so, it sets txn.keystore_allowed and the identity headers; if not, it answers.
local CHECKER = "http://127.0.0.1:8080"
local SOCKET = nil  -- or "unix@/run/keystore/check.sock"
-- Of each of the four attempts that HAProxy makes.
local TIMEOUT_MILLISECONDS = 250

-- Of one message only, or written by HAProxy itself.
local OWN = {["connection"] = true, ["content-length"] = true, ["keep-alive"] = true,
             ["transfer-encoding"] = true}

local function as_list(values)
    local list = {}
    for index = 0, #values do
        list[#list + 1] = values[index]
    end
    return list
end

core.register_action("keystore", {"http-req"}, function(txn, path)
    local given = txn.http:req_get_headers()
    local headers = {["x-forwarded-for"] = {txn.sf:src()}}
    for _, name in ipairs({"authorization", "x-api-key"}) do
        if given[name] then
            headers[name] = as_list(given[name])
        end
    end
    local answer = core.httpclient():get{
        url = CHECKER .. path, dst = SOCKET, headers = headers, timeout = TIMEOUT_MILLISECONDS}

    if answer.status == 200 then
        for name, values in pairs(answer.headers) do
            if name:sub(1, 7) == "x-auth-" then
                txn.http:req_set_header(name, values[0])
            end
        end
        txn:set_var("txn.keystore_allowed", true)
        return
    end

    local reply = txn:reply{status = 503}
    if answer.headers and answer.headers["x-auth-status"] then
        reply:set_status(answer.status)
        for name, values in pairs(answer.headers) do
            if not OWN[name] then
                for _, value in ipairs(as_list(values)) do
                    reply:add_header(name, value)
                end
            end
        end
        reply:set_body(answer.body)
    else
        reply:add_header("Retry-After", "5")
    end
    txn:done(reply)
end, 1)
