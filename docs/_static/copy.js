// A button at each block of code that copies it, without prompts and without what they print.
document.addEventListener("DOMContentLoaded", () => {
  for (const block of document.querySelectorAll("div.highlight > pre")) {
    const button = document.createElement("button");
    button.className = "copy";
    button.type = "button";
    button.textContent = "copy";
    button.setAttribute("aria-label", "Copy this code");
    button.addEventListener("click", async () => {
      const lines = block.textContent.split("\n");
      const prompted = lines.filter((line) => /^(>>>|\.\.\.) ?/.test(line));
      const text = prompted.length ? prompted.map((line) => line.replace(/^(>>>|\.\.\.) ?/, "")) : lines;
      await navigator.clipboard.writeText(text.join("\n").trimEnd() + "\n");
      button.textContent = "copied";
      setTimeout(() => { button.textContent = "copy"; }, 1500);
    });
    block.parentElement.append(button);
  }
});
