<?php
// A backend's receiver of webhooks under PHP's own server. It looks the headers up as Pusher's PHP SDK does
// (`Pusher::verifySignature`): by the spelling of Pusher's, in what `getallheaders()` hands on as it came.

$headers = getallheaders();
$body = file_get_contents('php://input');
$genuine = ($headers['X-Pusher-Key'] ?? null) === 'key'
    && ($headers['X-Pusher-Signature'] ?? null) === hash_hmac('sha256', $body, 'secret')
    && ($headers['Content-Type'] ?? null) === 'application/json';
$line = json_encode(['genuine' => $genuine, 'names' => array_keys($headers), 'body' => json_decode($body)]);
file_put_contents(getenv('RECEIVED'), $line . "\n", FILE_APPEND | LOCK_EX);
http_response_code($genuine ? 200 : 401);
