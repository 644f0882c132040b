// Elements of the page, made by hand: all text goes through textContent, so that a prompt can never be markup.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element. Of the properties, `on` holds listeners, `data` the dataset, `style` custom properties; names with a dash and
 * `role` become attributes. Children that are strings become text; null and false are left out.
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name === "on") for (const [kind, listener] of Object.entries(value)) element.addEventListener(kind, listener);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "style") for (const [property, text] of Object.entries(value)) element.style.setProperty(property, text);
    else if (name.includes("-") || name === "role" || name === "for" || name === "list") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `/ui/icons.svg#${name}`);
  svg.append(use);
  return svg;
}

export const find = (id) => document.getElementById(id);

/** Shows a message where one belongs, or takes it away. */
export function complain(element, message) {
  element.textContent = message || "";
  element.hidden = !message;
}

/** Says something to those who cannot see it happen. */
export function announce(message) {
  find("live").textContent = message;
}

/** A note that leaves by itself, unless it has something to press. */
export function toast(message, action = null) {
  const close = () => note.remove();
  const note = h("div", { className: "toast" }, h("span", {}, message));
  if (action) note.append(h("button", { type: "button", className: "quiet", on: { click: () => (close(), action.run()) } }, action.label));
  find("toasts").replaceChildren(note);
  setTimeout(close, action ? 9000 : 4000);
}

/** A question with a way out; resolves to whether it was answered with yes. */
export function ask(title, text, yes, no) {
  const dialog = find("ask");
  return new Promise((resolve) => {
    const answer = (value) => {
      dialog.returnValue = value;
      dialog.close();
    };
    dialog.replaceChildren(
      h("h2", { id: "ask-title" }, title),
      h("p", {}, text),
      h(
        "div",
        { className: "answers" },
        h("button", { type: "button", className: "secondary", autofocus: true, on: { click: () => answer("") } }, no),
        h("button", { type: "button", className: "danger", on: { click: () => answer("yes") } }, yes),
      ),
    );
    dialog.returnValue = "";
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
    dialog.showModal();
  });
}

/** Calls a function once things have been quiet for a while. */
export function debounced(wait, run) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(run, wait, ...values);
  };
}

/** Puts other children into an element; of choices, the one that has the focus keeps it. */
export function renew(element, ...children) {
  const held = element.contains(document.activeElement) ? document.activeElement.value : null;
  element.replaceChildren(...children);
  if (held !== null) (element.querySelector(`[value="${CSS.escape(held)}"]`) || element.querySelector(":checked"))?.focus({ preventScroll: true });
}

/** A set of choices of which one holds: radio buttons whose looks are up to `face`. */
export function radios(name, choices, { face, chosen, on }) {
  return choices.map((choice) => {
    const input = h("input", { type: "radio", name, value: choice.value, checked: choice.value === chosen, on: { change: () => on(choice.value) } });
    return h("label", { className: `choice ${name}-choice` }, input, ...face(choice));
  });
}
