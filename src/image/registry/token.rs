//! From a challenge and credentials to an `Authorization` header (distribution spec, "token authentication").

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::HeaderValue;
use reqwest::{Client, Method, StatusCode, header};
use serde::Deserialize;
use url::Url;

use super::hosts::Host;
use super::request::{Refusal, complaint, limited, transport};
use crate::image::auth::{Auth, Challenge};

/// Largest answer of a token service, bytes.
const MAX_ANSWER: u64 = 1 << 20;

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
}

/// What to send to `host` after its `challenge`. `auth` holds credentials that belong to this host.
pub async fn authorize(
    client: &Client,
    host: &Host,
    challenge: Option<Challenge>,
    auth: Option<&Auth>,
    repository: &str,
) -> Result<HeaderValue, Refusal> {
    let auth = auth.filter(|auth| !auth.is_empty());
    if let Some(auth) = auth
        && !auth.registry_token.is_empty()
    {
        return secret(&format!("Bearer {}", auth.registry_token));
    }
    match (challenge, auth) {
        (Some(Challenge::Basic), Some(auth)) => basic(auth),
        (Some(Challenge::Basic), None) => Err(Refusal::Unauthenticated("it wants a user name and password".into())),
        (Some(Challenge::Bearer { realm, service, scope }), auth) => {
            let scope = if scope.is_empty() { format!("repository:{repository}:pull") } else { scope };
            let realm = check_realm(host, &realm)?;
            let token = match auth {
                Some(auth) if !auth.identity_token.is_empty() => {
                    exchange(client, realm, &service, &scope, &auth.identity_token).await?
                }
                auth => fetch(client, realm, &service, &scope, auth).await?,
            };
            secret(&format!("Bearer {token}"))
        }
        (None, _) => Err(Refusal::Unauthenticated("it refuses without saying which credentials it wants".into())),
    }
}

fn check_realm(host: &Host, realm: &str) -> Result<Url, Refusal> {
    let url = Url::parse(realm).ok().filter(|url| url.has_host());
    let url = url.ok_or_else(|| Refusal::Permanent(format!("its token service {realm:?} is no URL")))?;
    let fine = match url.scheme() {
        "https" => true,
        // Credentials for a registry that speaks TLS must not be sent in the clear elsewhere.
        "http" => host.base.scheme() == "http",
        _ => false,
    };
    if fine { Ok(url) } else { Err(Refusal::Permanent(format!("its token service {realm:?} is not secure"))) }
}

async fn fetch(
    client: &Client,
    mut realm: Url,
    service: &str,
    scope: &str,
    auth: Option<&Auth>,
) -> Result<String, Refusal> {
    {
        let mut query = realm.query_pairs_mut();
        if !service.is_empty() {
            query.append_pair("service", service);
        }
        query.append_pair("scope", scope);
        if let Some(auth) = auth {
            query.append_pair("account", &auth.username);
        }
    }
    let mut request = client.request(Method::GET, realm.clone());
    if let Some(auth) = auth {
        request = request.header(header::AUTHORIZATION, basic(auth)?);
    }
    answer(request, &realm).await
}

async fn exchange(client: &Client, realm: Url, service: &str, scope: &str, refresh: &str) -> Result<String, Refusal> {
    let body = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("grant_type", "refresh_token")
        .append_pair("service", service)
        .append_pair("client_id", "podwright")
        .append_pair("scope", scope)
        .append_pair("refresh_token", refresh)
        .finish();
    let request = client
        .request(Method::POST, realm.clone())
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(body);
    answer(request, &realm).await
}

async fn answer(request: reqwest::RequestBuilder, realm: &Url) -> Result<String, Refusal> {
    let at = || format!("its token service {}", super::hosts::authority(realm));
    let response =
        request.send().await.map_err(|error| Refusal::Temporary(format!("{}: {}", at(), transport(error))))?;
    let status = response.status();
    if !status.is_success() {
        let reason = format!("{}: {}", at(), complaint(response).await);
        return Err(match status {
            StatusCode::UNAUTHORIZED => Refusal::Unauthenticated(reason),
            StatusCode::FORBIDDEN => Refusal::Forbidden(reason),
            StatusCode::TOO_MANY_REQUESTS => Refusal::Temporary(reason),
            status if status.is_server_error() => Refusal::Temporary(reason),
            _ => Refusal::Permanent(reason),
        });
    }
    let body =
        limited(response, MAX_ANSWER).await.map_err(|reason| Refusal::Temporary(format!("{}: {reason}", at())))?;
    let answer: Answer =
        serde_json::from_slice(&body).map_err(|error| Refusal::Permanent(format!("{}: {error}", at())))?;
    let token = answer.token.filter(|t| !t.is_empty()).or(answer.access_token).filter(|t| !t.is_empty());
    token.ok_or_else(|| Refusal::Permanent(format!("{} gives no token", at())))
}

fn basic(auth: &Auth) -> Result<HeaderValue, Refusal> {
    // An identity token serves as the password of a user without a name.
    let password = if auth.identity_token.is_empty() { &auth.password } else { &auth.identity_token };
    secret(&format!("Basic {}", STANDARD.encode(format!("{}:{password}", auth.username))))
}

fn secret(text: &str) -> Result<HeaderValue, Refusal> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| Refusal::Permanent("the credentials hold characters that cannot be sent".into()))?;
    value.set_sensitive(true);
    Ok(value)
}
