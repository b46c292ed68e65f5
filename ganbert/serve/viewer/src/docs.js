// The OpenAPI page. Nothing leaves this machine: no validator, no font, no script from elsewhere.
window.SwaggerUIBundle({ url: "openapi.json", dom_id: "#requests", validatorUrl: null });
