// Gradio labels its empty pictures but gives them no role, so that nobody reads the label.
new MutationObserver(() => {
  for (const empty of document.querySelectorAll('div.empty[aria-label]:not([role])')) {
    empty.setAttribute('role', 'img');
  }
}).observe(document.documentElement, {childList: true, subtree: true});

// Ctrl-Enter runs the tab in view.
document.addEventListener('keydown', (event) => {
  if (!(event.ctrlKey || event.metaKey) || event.key !== 'Enter') return;
  const run = [...document.querySelectorAll('button.run')].find((one) => one.offsetParent);
  if (!run) return;
  event.preventDefault();
  event.stopPropagation();
  run.click();
}, true);

// A link to the settings is copied, and stands in the address bar.
document.addEventListener('click', (event) => {
  const link = event.target.closest?.('a.permalink');
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  history.replaceState(null, '', link.href);
  navigator.clipboard?.writeText(link.href).catch(() => {});
  link.textContent = 'Copied; it is in the address bar too';
}, true);

// What the page's events call.
window.alignDemo = {
  // Names a run as it is sent: Stop sends the name, and the run itself says "Stopped." as it ends.
  started(status, inputs) {
    const run = `${Date.now()}-${Math.random()}`;
    document.getElementById(status).dataset.run = run;
    return [...inputs.slice(0, -1), run];
  },

  // The run that this page has named last.
  running(status) {
    return document.getElementById(status).dataset.run ?? '';
  },

  // As `started`, with the NAR tab's picture as the file's own bytes: no path is ever taken from a browser.
  async startedWithPicture(status, inputs) {
    const named = alignDemo.started(status, inputs);
    const shown = document.querySelector('#nar-picture img');
    let bytes = '';
    if (shown?.src) {
      const blob = await (await fetch(shown.src)).blob();
      bytes = await new Promise((done) => {
        const reader = new FileReader();
        reader.onload = () => done(reader.result);
        reader.readAsDataURL(blob);
      });
    }
    const [share, run] = named.slice(-2);
    return [...named.slice(0, -3), bytes, share, run];
  },

  // The prompt, and the picture that is open in the gallery, else the first one, for the NAR tab.
  toNar(prompt, gallery) {
    const shown = '#gallery .thumbnails button, #gallery .thumbnail-item';
    const open = [...document.querySelectorAll(shown)];
    const at = Math.max(0, open.findIndex((one) => one.classList.contains('selected')));
    return [{selected: 'nar', __type__: 'update'}, prompt, gallery?.[at]?.image ?? null];
  },
};
