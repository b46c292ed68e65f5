// The service's requests. Paths are relative, so that the page works behind a proxy's prefix too.

const PATIENCE = 30; // times, a second apart

let token = sessionStorage.getItem("token");

export function useToken(text) {
  token = text;
  sessionStorage.setItem("token", text);
}

export class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

function headers(more = {}) {
  return token ? { ...more, Authorization: `Bearer ${token}` } : more;
}

function reasonOf(text, status) {
  try {
    return JSON.parse(text).detail ?? `the service answered ${status}`;
  } catch {
    return `the service answered ${status}`;
  }
}

async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: headers() });
  if (!answer.ok) throw new Refused(answer.status, reasonOf(await answer.text(), answer.status));
  return answer;
}

export const getModel = async () => (await ask("v1/model")).json();
export const getJob = async (id, options) => (await ask(`v1/jobs/${id}`, options)).json();
export const getFile = async (id, name) => (await ask(`v1/jobs/${id}/${name}`)).blob();
export const deleteJob = (id) => ask(`v1/jobs/${id}`, { method: "DELETE" });

// fetch() does not say how much of an upload is sent; XMLHttpRequest does. Throws the reason of
// `signal` once that is aborted. If all is sent by then, the service may have queued the image, and
// only its answer has the id by which it can be deleted: the job is, as soon as that comes, and
// `onLeft` is told why if it cannot be.
export async function upload(file, query, onProgress, signal, onLeft) {
  signal.throwIfAborted(); // a listener would not hear of it any more
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", `v1/jobs?${new URLSearchParams(query)}`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => onProgress(event.loaded / Math.max(event.total, 1));
    let isSent = false;
    request.upload.onload = () => { isSent = true; };
    const cancel = () => {
      if (!isSent) request.abort();
      reject(signal.reason);
    };
    signal.addEventListener("abort", cancel, { once: true });
    request.onerror = () => reject(new Error("the service cannot be reached"));
    request.onload = () => {
      const { status, responseText: text } = request;
      if (status !== 202) reject(new Refused(status, reasonOf(text, status)));
      else if (signal.aborted) deleteJob(JSON.parse(text).id).catch(onLeft);
      else resolve(JSON.parse(text));
    };
    request.send(file);
  });
}

// Server-sent events through fetch(), because EventSource cannot carry a token. Where the stream
// breaks, the job is asked for again, and so it is where a connection does for a moment. Throws the
// reason of `signal` once that is aborted.
export async function follow(id, onChange, signal) {
  let numFailed = 0;
  for (;;) {
    try {
      const stream = (await ask(`v1/jobs/${id}/events`, { signal })).body.pipeThrough(new TextDecoderStream());
      let text = "";
      for await (const piece of iterate(stream)) {
        text += piece;
        const events = text.split("\n\n");
        text = events.pop();
        for (const event of events) {
          const line = event.split("\n").find((l) => l.startsWith("data: "));
          if (line) onChange(JSON.parse(line.slice(6)));
        }
      }
    } catch (error) {
      if (error instanceof Refused || signal.aborted) throw error;
    }
    try {
      const job = await getJob(id, { signal });
      numFailed = 0;
      onChange(job);
      if (job.state === "done" || job.state === "failed") return job;
    } catch (error) {
      if (error instanceof Refused || signal.aborted) throw error;
      numFailed += 1;
      if (numFailed > PATIENCE) throw new Error("the service cannot be reached");
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

async function* iterate(stream) {
  const reader = stream.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield value;
  }
}
