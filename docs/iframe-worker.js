// The search of pages that are opened as files. A browser starts no worker from a file, so here the worker's script runs in a
// hidden frame. Pages from a server use the browser's own workers.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.onmessage = this.onerror = this.onmessageerror = null;
      this.waiting = []; // messages until the script is loaded
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.head.append(this.frame);
      this.frame.contentWindow.postMessage = (data) => this.tell(new MessageEvent("message", { data }));
      const script = this.frame.contentDocument.createElement("script");
      script.src = new URL(url, document.baseURI);
      script.onload = () => this.begin();
      script.onerror = () => this.tell(new ErrorEvent("error", { message: `${script.src} cannot be loaded` }));
      this.frame.contentDocument.head.append(script);
    }

    postMessage(data) {
      const own = structuredClone(data); // the sender may change its value meanwhile
      if (this.waiting) this.waiting.push(own);
      else this.hand(own);
    }

    terminate() {
      this.frame.remove();
    }

    begin() {
      const waiting = this.waiting;
      this.waiting = null;
      waiting.forEach((data) => this.hand(data));
    }

    hand(data) {
      setTimeout(() => this.frame.isConnected && this.frame.contentWindow.onmessage(new MessageEvent("message", { data })));
    }

    tell(event) {
      setTimeout(() => {
        this[`on${event.type}`]?.(event);
        this.dispatchEvent(event);
      });
    }
  };
}
